"""Mistakes on the command line are one paragraph each; refused flags come with their reason."""

from __future__ import annotations

import pytest

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import ConfigError


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser("A command.", {"--partitions": "one run reads everything"})
    parser.add_argument("--workers", type=int, default=1)
    return parser


def test_known_flags_are_read(parser: CommandParser):
    assert parser.parse_args(["--workers", "3"]).workers == 3


@pytest.mark.parametrize("words", [["--partitions"], ["--partitions", "2"], ["--partitions=2"]])
def test_refused_flags_give_their_reason(parser: CommandParser, words: list[str]):
    with pytest.raises(ConfigError, match=r"--partitions is not accepted.*one run reads everything"):
        parser.parse_args(words)


def test_unknown_flags_name_the_nearest(parser: CommandParser):
    with pytest.raises(ConfigError, match=r"--worker is not a flag.*--workers"):
        parser.parse_args(["--worker", "3"])


def test_wrong_values_are_refused(parser: CommandParser):
    with pytest.raises(ConfigError, match="--workers"):
        parser.parse_args(["--workers", "many"])


def test_refused_flags_are_not_advertised(parser: CommandParser):
    assert "--partitions" not in parser.format_help()


def test_examples_keep_their_lines_and_empty_defaults_are_not_told():
    parser = CommandParser("A command.\n\nExamples:\n    first line\n    second line\n")
    parser.add_argument("--model", default=None, help="a file")
    parser.add_argument("--fast", action="store_true", help="less work")
    parser.add_argument("--workers", type=int, default=3, help="processes")
    text = parser.format_help()
    assert "    first line\n    second line\n" in text
    assert "None" not in text
    assert "False" not in text
    assert "processes (default: 3)" in text
