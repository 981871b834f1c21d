"""The command line, generated from the fields of the sections; nobody writes add_argument for a setting."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from megatron_ext.config.knob import BOOL, INTS, STRS, Setting, settings_of
from megatron_ext.config.refused import refusal
from megatron_ext.config.run import SECTIONS, all_settings
from megatron_ext.errors import ConfigError

_NEGATIVE_NUMBER = re.compile(r"^-\d|^-\.\d")


@dataclass(frozen=True)
class Typed:
    """One flag as it was typed: the setting's name, its text (or a boolean), and the flag itself."""

    name: str
    value: str | list[str] | bool
    flag: str


@dataclass(frozen=True)
class CommandLine:
    """The configuration files in order, and the flags in order."""

    files: list[str]
    typed: list[Typed]


def build_parser(
    prog: str | None = None,
    description: str | None = None,
    epilog: str | None = None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    """A parser with one flag per setting, grouped by section; its errors are `ConfigError`s."""
    parser = SettingsParser(
        prog=prog,
        usage="%(prog)s [-h] [--config FILE ...] [--FLAG VALUE ...]",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        parents=list(parents),
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help="configuration file (YAML), repeatable; flags win over files, a key may stand in one file",
    )
    for section, cls in SECTIONS.items():
        group = parser.add_argument_group(section, (cls.__doc__ or "").splitlines()[0])
        for setting in settings_of(cls).values():
            group.add_argument(
                *setting.on_flags,
                *setting.off_flags,
                dest="typed",
                action=_Record,
                setting=setting,
                **_presentation(setting),
            )
    return parser


def parse_command_line(argv: Sequence[str], parser: argparse.ArgumentParser | None = None) -> CommandLine:
    """Split `argv` into files and typed flags.

    Raises:
        ConfigError: an unknown flag (with the nearest known one), a Megatron-LM flag without meaning here, a flag
            without its value, or a stray word.
    """
    problems = [problem for word in argv if (problem := _unknown_flag(word))]
    if problems:
        raise problems_error(problems)
    namespace, rest = (parser or build_parser()).parse_known_args(list(argv))
    if rest:
        raise ConfigError(f"unexpected word {rest[0]!r} on the command line", "", "a value needs its flag before it")
    return CommandLine(list(namespace.config), list(namespace.typed or []))


def problems_error(problems: Sequence[str]) -> ConfigError:
    """One error that tells all problems found: a sentence for one, a list for several."""
    if len(problems) == 1:
        return ConfigError(problems[0])
    return ConfigError(f"{len(problems)} settings cannot be used:" + "".join(f"\n  - {line}" for line in problems))


def nearest(word: str, known: dict[str, str]) -> str:
    """A question for the known spelling that is nearest to `word` (`; did you mean ...?`); empty when none is near.

    Args:
        word: what was typed.
        known: spelling -> what to suggest for it.
    """
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {known[match[0]]}?" if match else ""


@functools.cache
def _known_flags() -> dict[str, str]:
    settings = all_settings().values()
    return {spelling: spelling for setting in settings for spelling in (*setting.on_flags, *setting.off_flags)}


def _unknown_flag(word: str) -> str | None:
    flag = word.split("=", 1)[0]
    if not flag.startswith("-") or _NEGATIVE_NUMBER.match(flag) or flag in ("-", "-h", "--help", "--config"):
        return None
    known = _known_flags()
    if flag in known:
        return None
    reason = refusal(flag)
    if reason:
        return f"{flag} is not accepted: {reason}"
    by_name = {"--" + name.replace("_", "-"): setting.flag for name, setting in all_settings().items()}
    return f"unknown flag {flag}" + nearest(flag.replace("_", "-"), {**by_name, **known, "--config": "--config"})


def _presentation(setting: Setting) -> dict[str, Any]:
    unit = f" [{setting.knob.unit}]" if setting.knob.unit else ""
    default = "not set" if setting.default is None else setting.default
    if setting.kind == BOOL:
        default = "on" if setting.default else "off"
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    help_text = f"{setting.knob.help}{unit} (default: {default})".replace("%", "%%")
    if setting.kind == BOOL:
        return {"nargs": 0, "help": help_text}
    metavar = "{" + ",".join(setting.knob.choices) + "}" if setting.knob.choices else setting.name.upper()
    return {"nargs": "+" if setting.kind in (INTS, STRS) else None, "metavar": metavar, "help": help_text}


class _Record(argparse.Action):
    """Appends what was typed to `namespace.typed`; a later flag of the same setting wins, as users expect."""

    def __init__(self, setting: Setting, **options: Any) -> None:
        super().__init__(default=None, **options)
        self.setting = setting

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        flag = option_string or ""
        value = values if self.setting.kind != BOOL else flag in self.setting.on_flags
        namespace.typed = [*(namespace.typed or []), Typed(self.setting.name, value, flag)]


class SettingsParser(argparse.ArgumentParser):
    """An argparse parser whose complaints are `ConfigError`s."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise ConfigError(message.removeprefix("argument "))


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)
