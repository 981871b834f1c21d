"""From a command line to a checked RunConfig: defaults, then each --config file in order, then flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ext.config.flags import Typed, nearest, parse_command_line, problems_error
from megatron_ext.config.refused import refusal
from megatron_ext.config.rules import check_rules
from megatron_ext.config.run import SECTIONS, RunConfig, all_settings, section_of
from megatron_ext.config.yaml_files import Entry, read_entries


@dataclass(frozen=True)
class Resolved:
    """A run and where each of its values came from.

    Args:
        run: the settings.
        sources: setting name -> "default", "FILE:LINE" or the flag that gave it.
    """

    run: RunConfig
    sources: dict[str, str]


def load_run_config(argv: Sequence[str], world_size: int | None, purpose: str = "train") -> Resolved:
    """Resolve a command line and check it; imports neither torch nor megatron-core and needs no process group.

    Args:
        argv: the words after the program's name.
        world_size: processes of the job; None takes the smallest one the layout allows.
        purpose: "train" asks for everything a training run needs; "model" only for a complete architecture.

    Raises:
        ConfigError: an unreadable file, an unknown or doubly set key, a wrong value, or rules that do not hold
            (all of them at once).
    """
    resolved = resolve(argv, world_size)
    check_rules(resolved.run, purpose)
    return resolved


def resolve(argv: Sequence[str], world_size: int | None, parser: argparse.ArgumentParser | None = None) -> Resolved:
    """`load_run_config` without the rules, for tools that list failures themselves.

    Args:
        argv: the words after the program's name.
        world_size: processes of the job; None takes the smallest one the layout allows.
        parser: parser that answers --help; made by `flags.build_parser`.
    """
    line = parse_command_line(argv, parser)
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources = dict.fromkeys(all_settings(), "default")
    _take_files([entry for path in line.files for entry in read_entries(path)], values, sources, problems)
    for typed in line.typed:
        _take_flag(typed, values, sources, problems)
    if problems:
        raise problems_error(problems)
    sections = {
        section: cls(**{name: value for name, value in values.items() if section_of()[name] == section})
        for section, cls in SECTIONS.items()
    }
    run = RunConfig(**sections)  # type: ignore[arg-type]
    return Resolved(run.with_values(world_size=world_size or run.parallel.model_parallel_size), sources)


def _take_files(entries: Sequence[Entry], values: dict[str, Any], sources: dict[str, str], problems: list[str]) -> None:
    for entry in entries:
        unknown = _unknown_key(entry)
        if unknown:
            problems.append(f"{entry.place}: {unknown}")
        elif sources[entry.key] != "default":
            problems.append(
                f"{entry.place}: {entry.section}.{entry.key} is already set in {sources[entry.key]}; "
                "a key may be set by one file (a flag wins over files)"
            )
        else:
            setting = all_settings()[entry.key]
            sources[entry.key] = entry.place
            try:
                values[entry.key] = setting.check(None) if entry.text is None else setting.parse(entry.text)
            except ValueError as error:
                problems.append(f"{entry.place}: {entry.section}.{entry.key} {error}")


def _take_flag(typed: Typed, values: dict[str, Any], sources: dict[str, str], problems: list[str]) -> None:
    sources[typed.name] = typed.flag
    try:
        values[typed.name] = (
            typed.value if isinstance(typed.value, bool) else all_settings()[typed.name].parse(typed.value)
        )
    except ValueError as error:
        problems.append(f"{typed.flag} {error}")


def _unknown_key(entry: Entry) -> str | None:
    if entry.section not in SECTIONS:
        return f"unknown section {entry.section}" + (
            nearest(entry.section, {name: name for name in SECTIONS}) or f"; the sections are {', '.join(SECTIONS)}"
        )
    home = section_of().get(entry.key)
    if home == entry.section:
        return None
    if home is not None:
        return f"{entry.key} belongs to section {home}, not {entry.section}"
    reason = refusal("--" + entry.key.replace("_", "-"))
    if reason:
        return f"{entry.section}.{entry.key} is not accepted: {reason}"
    return f"unknown key {entry.section}.{entry.key}" + nearest(entry.key, {name: name for name in section_of()})
