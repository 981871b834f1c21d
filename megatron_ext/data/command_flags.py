"""Command lines of the data tools: mistakes become one paragraph, Megatron-LM's flags without meaning get a reason."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from megatron_ext.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError, and refuses some flags with their reason.

    Args:
        description: shown by --help as it is written: a command's docstring with its examples.
        refused: flag -> why it does not exist here.
    """

    def __init__(self, description: str, refused: Mapping[str, str] | None = None) -> None:
        super().__init__(description=description.strip(), allow_abbrev=False, formatter_class=_HelpFormatter)
        for flag, reason in (refused or {}).items():
            self.add_argument(flag, action=_Refuse, nargs="*", help=argparse.SUPPRESS, const=reason)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and name the nearest flag for each unknown one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(word.split("=")[0], known, n=1)
            hint = f"the nearest flag is {near[0]}" if near else "see --help"
            raise ConfigError(f"{word} is not a flag of this command", fix=hint)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of printing the usage."""
        raise ConfigError(message, fix="See --help")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines, and only defaults that say something are shown."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default in ([], ())
        return action.help if says_nothing else super()._get_help_string(action)


class _Refuse(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        raise ConfigError(f"{option_string} is not accepted", str(self.const), "Leave it out")
