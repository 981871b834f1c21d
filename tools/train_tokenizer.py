r"""Train a SentencePiece tokenizer on raw text: JSON, parquet or plain text in, PREFIX.model and PREFIX.vocab out.

Example:
    python tools/train_tokenizer.py --input corpus.jsonl --output-prefix tokenizer --preset llama2 --vocab-size 8000
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import run_command

_SWITCHES = {
    "--byte-fallback": "spell characters without a piece in bytes",
    "--split-digits": "no pieces of several digits",
    "--add-dummy-prefix": "a space before every text",
    "--remove-extra-whitespaces": "drop leading, trailing and repeated spaces (the text cannot be restored)",
    "--allow-whitespace-only-pieces": "pieces for runs of spaces",
}
_NORMALIZATIONS = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")


def make_parser() -> CommandParser:
    """The flags; those of SentencePiece have its names, and their defaults come from the preset."""
    from megatron_ext.data.sources.inputs import FORMATS
    from megatron_ext.tokenizer.presets import PRESETS

    parser = CommandParser(__doc__ or "")
    parser.formatter_class = argparse.HelpFormatter
    data = parser.add_argument_group("text")
    data.add_argument(
        "--input", nargs="+", required=True, help="files, folders or patterns, .gz and .zst too; - is standard input"
    )
    data.add_argument(
        "--input-format", choices=("auto", *FORMATS), default="auto", help="auto goes by the suffix (default: auto)"
    )
    data.add_argument("--json-keys", nargs="+", default=["text"], help="keys whose texts are used (default: text)")
    data.add_argument(
        "--input-sentence-size", type=int, default=0, help="lines drawn at random for training (default: 0, all)"
    )
    data.add_argument("--seed", type=int, default=1234, help="decides which lines are drawn (default: 1234)")
    output = parser.add_argument_group("output")
    output.add_argument("--output-prefix", required=True, help="writes PREFIX.model and PREFIX.vocab")
    output.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    model = parser.add_argument_group("model", "What is not given comes from the preset.")
    model.add_argument(
        "--preset", choices=tuple(PRESETS), default="llama2", help="settings to begin from (default: llama2)"
    )
    model.add_argument("--model-type", choices=("bpe", "unigram"), help="kind of model")
    model.add_argument("--vocab-size", type=int, help="number of pieces, special and byte pieces included")
    model.add_argument("--character-coverage", type=float, help="share of characters that get a piece of their own")
    model.add_argument("--normalization", choices=_NORMALIZATIONS, help="rule applied to every text")
    for flag, meaning in _SWITCHES.items():
        model.add_argument(flag, action=argparse.BooleanOptionalAction, help=meaning)
    model.add_argument("--max-piece-length", type=int, help="longest piece in characters")
    model.add_argument(
        "--user-defined-symbols", nargs="+", metavar="PIECE", help=r"pieces that stand alone; \n and \t are understood"
    )
    model.add_argument("--with-pad", action="store_true", help="give id 3 to a padding piece")
    return parser


def settings_from(arguments: argparse.Namespace) -> Any:
    """The preset's settings with the flags that were given on top."""
    from megatron_ext.tokenizer.presets import PRESETS

    preset = PRESETS[arguments.preset]
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(preset)
        if getattr(arguments, field.name) is not None
    }
    if "user_defined_symbols" in given:
        symbols = (symbol.replace("\\n", "\n").replace("\\t", "\t") for symbol in given["user_defined_symbols"])
        given["user_defined_symbols"] = tuple(dict.fromkeys((*preset.user_defined_symbols, *symbols)))
    return dataclasses.replace(preset, **given)


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    arguments = make_parser().parse_args(argv)
    from megatron_ext.tokenizer.training import TokenizerRequest, train_tokenizer

    train_tokenizer(
        TokenizerRequest(
            inputs=tuple(arguments.input),
            output_prefix=arguments.output_prefix,
            settings=settings_from(arguments),
            input_format=arguments.input_format,
            json_keys=tuple(arguments.json_keys),
            with_pad=arguments.with_pad,
            input_sentence_size=arguments.input_sentence_size,
            seed=arguments.seed,
            overwrite=arguments.overwrite,
        )
    )


if __name__ == "__main__":
    run_command(main)
