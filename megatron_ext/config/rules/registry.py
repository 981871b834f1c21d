"""The list of rules and the one place that runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_ext.config.run import RunConfig, all_settings
from megatron_ext.errors import ConfigError

Check = Callable[[RunConfig], str | None]


@dataclass(frozen=True)
class Rule:
    """One thing that must hold.

    Args:
        name: says what must hold.
        check: returns what is wrong, with flags and numbers, or None.
        needs: settings without which there is nothing to check.
        training: whether only training runs must keep it.
    """

    name: str
    check: Check
    needs: tuple[str, ...]
    training: bool


RULES: dict[str, Rule] = {}


def rule(needs: str = "", training: bool = False) -> Callable[[Check], Check]:
    """Register a check under its function's name; it is skipped while a setting of `needs` is absent."""

    def register(check: Check) -> Check:
        RULES[check.__name__] = Rule(check.__name__, check, tuple(needs.split()), training)
        return check

    return register


def failures(run: RunConfig, purpose: str = "train") -> dict[str, str]:
    """Name and message of every rule that does not hold, in the order of the rules."""
    found = {}
    for entry in RULES.values():
        if entry.training and purpose != "train":
            continue
        if any(run.get(name) is None for name in entry.needs):
            continue
        message = entry.check(run)
        if message:
            found[entry.name] = message
    return found


def check_rules(run: RunConfig, purpose: str = "train") -> None:
    """Check every rule; needs no torch and no process group.

    Args:
        run: the settings.
        purpose: "train", or "model" for tools that need a complete architecture only.

    Raises:
        ConfigError: lists all rules that do not hold.
    """
    found = list(failures(run, purpose).values())
    if len(found) == 1:
        raise ConfigError(found[0])
    if found:
        raise ConfigError(f"{len(found)} rules do not hold:" + "".join(f"\n  - {message}" for message in found))


def given(run: RunConfig, names: str) -> list[str]:
    """Flags of those settings (names separated by blanks) whose value is not the default."""
    settings = all_settings()
    return [settings[name].flag for name in names.split() if run.get(name) != settings[name].default]


def missing(run: RunConfig, names: str) -> list[str]:
    """Flags of those settings (names separated by blanks) that have no value."""
    return [all_settings()[name].flag for name in names.split() if run.get(name) is None]


def without_effect(run: RunConfig, names: str, reason: str) -> str | None:
    """What to say when a setting would be accepted and ignored; None when all of them have their defaults."""
    flags = given(run, names)
    verb = "has" if len(flags) == 1 else "have"
    return f"{', '.join(flags)} {verb} no effect {reason}" if flags else None
