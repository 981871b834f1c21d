"""megatron-core's own datasets, built as Megatron-LM builds them."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

EOD = 1000


class CoreTokenizer(SimpleNamespace):
    """What GPTDatasetConfig reads of a tokenizer."""

    @property
    def unique_identifiers(self) -> dict:
        return {"class": "test"}


def core_datasets(cache: Path, sizes: tuple[int, int, int], **config: object) -> list[GPTDataset | None]:
    """Training, validation and test datasets."""
    settings = {
        "random_seed": 1234,
        "sequence_length": 16,
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "create_attention_mask": False,
        "tokenizer": CoreTokenizer(vocab_size=EOD + 1, eod=EOD, pad=-1),
        **config,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BlendedMegatronDatasetBuilder(
            GPTDataset, list(sizes), lambda: True, GPTDatasetConfig(path_to_cache=None, **settings)
        ).build()


def core_rows(dataset: GPTDataset, count: int) -> np.ndarray:
    """The first `count` samples, int64 `[count, s + 1]`."""
    rows = [dataset[index] for index in range(count)]
    return np.stack([np.append(row["tokens"].numpy(), row["labels"][-1].item()) for row in rows])
