"""The settings of tools/pack_dataset.py, and the rules that they keep before anything is read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from megatron_ext.errors import ConfigError

OVERLAP, FIRST_FIT, BUCKETS, STREAM = METHODS = ("overlap", "first-fit", "buckets", "stream")
CUT, REFUSE, DROP = LONG_DOCUMENTS = ("cut", "refuse", "drop")
LOOK_BACK_SHARE = 32
"""The overlap rule looks for a BOS in the last seq_length / 32 tokens of a block."""
FIRST_FIT_MARGIN = 10
"""The first-fit rule fills a block with fewer than seq_length - 10 tokens."""
DEFAULT_SEED = 1234
_SMALLEST = {OVERLAP: LOOK_BACK_SHARE, FIRST_FIT: FIRST_FIT_MARGIN + 2, STREAM: 2}
_SMALLEST_WHY = {
    OVERLAP: "The rule looks back at a 32nd of a block, so a block has at least 32 tokens",
    FIRST_FIT: "The rule leaves 10 tokens of each block free and takes rows shorter than the rest: at least 12",
    STREAM: "A block of one token predicts nothing: at least 2",
}
# Which methods read a setting; given to another one it is refused, never ignored.
_BELONGS_TO = {
    "seq_length": (OVERLAP, FIRST_FIT, STREAM),
    "bos_id": (OVERLAP,),
    "reset_every": (OVERLAP,),
    "pad_id": (FIRST_FIT,),
    "weights": (FIRST_FIT,),
    "weights_file": (FIRST_FIT,),
    "pack_shards": (FIRST_FIT,),
    "num_samples": (FIRST_FIT,),
    "seed": (FIRST_FIT,),
    "bucket_sizes": (BUCKETS,),
    "long_documents": (BUCKETS,),
    "drop_last": (STREAM,),
}


@dataclass(frozen=True)
class PackSettings:
    """The flags of tools/pack_dataset.py; None for a flag that is not given.

    Attributes:
        method: one of METHODS.
        inputs: prefixes of finished datasets, in the order in which their documents are read.
        output_prefix: prefix of the packed dataset; buckets add `_SIZE`.
        seq_length: most tokens of a block.
        bos_id: the id that begins each document (overlap).
        reset_every: documents after which the overlap begins anew, as the published program does; None: never.
        pad_id: the id in front of a first-fit block that is not full.
        weights: a weight per input.
        weights_file: JSON object of input prefix -> weight, instead of `weights`.
        pack_shards: contiguous parts of the shuffled rows, packed one by one.
        num_samples: blocks wanted, in as many epochs as they take; None: one epoch.
        seed: decides weights, shuffle and order.
        bucket_sizes: rising block sizes.
        long_documents: one of LONG_DOCUMENTS, for documents longer than the largest bucket.
        drop_last: leave out the last block of a stream when it is not full.
        overwrite: replace outputs that exist.
    """

    method: str
    inputs: tuple[str, ...]
    output_prefix: str
    seq_length: int | None = None
    bos_id: int | None = None
    reset_every: int | None = None
    pad_id: int | None = None
    weights: tuple[float, ...] | None = None
    weights_file: str | None = None
    pack_shards: int | None = None
    num_samples: int | None = None
    seed: int | None = None
    bucket_sizes: tuple[int, ...] | None = None
    long_documents: str | None = None
    drop_last: bool | None = None
    overwrite: bool = False


def check_settings(settings: PackSettings) -> None:
    """Refuse settings that contradict their method or each other.

    Raises:
        ConfigError: a flag is missing, belongs to another method, or has an impossible value.
    """
    if settings.method not in METHODS:
        raise ConfigError(f"--method {settings.method} does not exist", f"There are {', '.join(METHODS)}")
    for name, methods in _BELONGS_TO.items():
        if getattr(settings, name) is not None and settings.method not in methods:
            raise ConfigError(
                f"{_flag(name)} is not accepted with --method {settings.method}",
                f"It belongs to --method {' and '.join(methods)}",
                "Leave it out",
            )
    if settings.method == BUCKETS:
        _check_bucket_sizes(settings.bucket_sizes)
        return
    smallest = _SMALLEST[settings.method]
    _require_at_least(settings, "seq_length", smallest, _SMALLEST_WHY[settings.method])
    if settings.method == OVERLAP:
        _require_at_least(settings, "bos_id", 0, "The rule needs the id that begins each document")
        _refuse_below(settings, "reset_every", 1, "It counts documents")
    if settings.method == FIRST_FIT:
        _require_at_least(settings, "pad_id", 0, "Blocks are filled up in front with this id")
        _check_first_fit(settings)


def _check_first_fit(settings: PackSettings) -> None:
    _refuse_below(settings, "pack_shards", 1, "It counts parts")
    _refuse_below(settings, "num_samples", 1, "It counts blocks")
    if settings.weights is not None and settings.weights_file is not None:
        raise ConfigError("--weights and --weights-file are given together", fix="Give one of them")
    shards = settings.pack_shards or 1
    if settings.num_samples is not None and settings.num_samples % shards:
        raise ConfigError(
            f"--num-samples {settings.num_samples} is not a multiple of --pack-shards {shards}",
            "Each part gives the same number of blocks",
            f"Give {settings.num_samples // shards * shards or shards}, or another number of parts",
        )


def _check_bucket_sizes(sizes: tuple[int, ...] | None) -> None:
    if not sizes:
        raise ConfigError("--method buckets needs --bucket-sizes", fix="For example --bucket-sizes 2048 4096 8192")
    if sizes[0] < 2 or any(after <= before for before, after in itertools.pairwise(sizes)):
        raise ConfigError(
            f"--bucket-sizes {' '.join(map(str, sizes))} is not possible",
            "Sizes are at least 2, and each is larger than the one before",
        )


def _require_at_least(settings: PackSettings, name: str, smallest: int, why: str) -> None:
    if getattr(settings, name) is None:
        raise ConfigError(f"--method {settings.method} needs {_flag(name)}", why)
    _refuse_below(settings, name, smallest, why)


def _refuse_below(settings: PackSettings, name: str, smallest: int, why: str) -> None:
    value = getattr(settings, name)
    if value is not None and value < smallest:
        raise ConfigError(f"{_flag(name)} {value} is not possible", why, f"Give at least {smallest}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
