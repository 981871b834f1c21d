"""Errors that a user can cause and mend; everything else is a bug and keeps its traceback."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

SECONDS_FOR_RANK_0 = 10.0
"""How long the other ranks wait for rank 0 to tell of a failure that every rank has seen."""


class MegatronExtError(Exception):
    """A user's mistake, told in one paragraph: what is wrong, the rule with its numbers, what to change.

    Args:
        what: what is wrong, naming the flag or file and the value found.
        rule: the rule that does not hold, with the numbers put in.
        fix: what to change.
    """

    def __init__(self, what: str, rule: str = "", fix: str = "") -> None:
        self.what, self.rule, self.fix = what, rule, fix
        super().__init__(what, rule, fix)

    def __str__(self) -> str:
        return " ".join(_sentence(part) for part in (self.what, self.rule, self.fix) if part)


class ConfigError(MegatronExtError):
    """A flag, a configuration file, or a combination of settings is wrong."""


class DataError(MegatronExtError):
    """A corpus, an indexed dataset, its manifest or an order file cannot be used."""


class TokenizerError(MegatronExtError):
    """A tokenizer file is missing, unreadable, or not the one the data was made with."""


class CheckpointError(MegatronExtError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(MegatronExtError):
    """Training has come to a point from which it makes no progress."""


class ConversionError(MegatronExtError):
    """A model cannot be expressed on the other side, or the converted model computes something else."""


def run_command(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run `main(sys.argv[1:])` as a program and exit with its status.

    A `MegatronExtError` becomes one paragraph on stderr and exit status 1. When every rank has failed, rank 0 alone
    tells (torchrun's RANK; a program started without torchrun is rank 0). Any other exception keeps its traceback.
    """
    try:
        status = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except MegatronExtError as error:
        if os.environ.get("RANK", "0") != "0":
            # torchrun ends all ranks as soon as one has failed: let it be rank 0, after it has said why. Whoever is
            # still alive then has a failure of its own to tell.
            time.sleep(SECONDS_FOR_RANK_0)
        sys.stderr.write(f"error: {error}\n")
        status = 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # the reader has seen enough (`... | head`); nothing more can be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.stderr.flush()
    sys.exit(status)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", ":")) else text + "."
