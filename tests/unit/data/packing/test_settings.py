"""Settings that contradict their method or each other are refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.data.packing.settings import METHODS, PackSettings, check_settings
from megatron_ext.errors import ConfigError

GOOD: dict[str, dict[str, Any]] = {
    "overlap": {"seq_length": 32, "bos_id": 1},
    "first-fit": {"seq_length": 12, "pad_id": 3},
    "buckets": {"bucket_sizes": (2, 4)},
    "stream": {"seq_length": 2},
}
OTHERS: dict[str, Any] = {
    "bos_id": 0,
    "reset_every": 1000,
    "pad_id": 0,
    "weights": (1.0,),
    "weights_file": "w.json",
    "pack_shards": 2,
    "num_samples": 4,
    "seed": 0,
    "bucket_sizes": (2, 4),
    "long_documents": "cut",
    "drop_last": True,
}
OWN = {
    "overlap": {"bos_id", "reset_every"},
    "first-fit": {"pad_id", "weights", "weights_file", "pack_shards", "num_samples", "seed"},
    "buckets": {"bucket_sizes", "long_documents"},
    "stream": {"drop_last"},
}


def made(method: str, **values: Any) -> PackSettings:
    return PackSettings(method, ("a",), "out", **{**GOOD[method], **values})


@pytest.mark.parametrize("method", METHODS)
def test_every_flag_is_used_or_refused(method: str):
    check_settings(made(method))
    for name, value in OTHERS.items():
        if name in OWN[method]:
            check_settings(made(method, **{name: value}))
        else:
            flag = "--" + name.replace("_", "-")
            with pytest.raises(ConfigError, match=f"{flag} is not accepted with --method {method}"):
                check_settings(made(method, **{name: value}))


@pytest.mark.parametrize("method", ["overlap", "first-fit", "stream"])
def test_a_block_that_is_too_short_is_refused_with_the_smallest(method: str):
    smallest = GOOD[method]["seq_length"]
    with pytest.raises(ConfigError, match=rf"--seq-length {smallest - 1} .*at least {smallest}"):
        check_settings(made(method, seq_length=smallest - 1))
    with pytest.raises(ConfigError, match="needs --seq-length"):
        check_settings(made(method, seq_length=None))


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("overlap", {"bos_id": None}, "needs --bos-id"),
        ("overlap", {"bos_id": -1}, "--bos-id -1"),
        ("overlap", {"reset_every": 0}, "--reset-every 0"),
        ("first-fit", {"pad_id": None}, "needs --pad-id"),
        ("first-fit", {"pad_id": -3}, "--pad-id -3"),
        ("first-fit", {"pack_shards": 0}, "--pack-shards 0"),
        ("first-fit", {"num_samples": 0}, "--num-samples 0"),
        ("first-fit", {"num_samples": 10, "pack_shards": 3}, "--num-samples 10 is not a multiple.*Give 9"),
        ("first-fit", {"weights": (1.0,), "weights_file": "w"}, "given together"),
        ("buckets", {"bucket_sizes": None}, "needs --bucket-sizes"),
        ("buckets", {"bucket_sizes": (4, 4)}, "--bucket-sizes 4 4"),
        ("buckets", {"bucket_sizes": (1, 4)}, "--bucket-sizes 1 4"),
        ("buckets", {"seq_length": 4}, "--seq-length is not accepted"),
    ],
)
def test_impossible_values_are_refused(method: str, values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        check_settings(made(method, **values))


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match=r"--method best .*overlap, first-fit, buckets, stream"):
        check_settings(PackSettings("best", ("a",), "out"))
