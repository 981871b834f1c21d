"""megatron-core's GPTDataset, built as Megatron-LM builds it."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace


class CoreTokenizer(SimpleNamespace):
    """What GPTDatasetConfig reads of a tokenizer."""

    @property
    def unique_identifiers(self) -> dict[str, str]:
        """Names the tokenizer in the cache's hash."""
        return {"class": "benchmark"}


def gpt_dataset(prefix: str, num_samples: int, seq_length: int, cache: Path, vocab_size: int) -> object:
    """The training dataset of one prefix, all of its documents."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=seq_length,
            blend=([prefix], None),
            split="1",
            path_to_cache=str(cache),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            tokenizer=CoreTokenizer(vocab_size=vocab_size, eod=vocab_size - 1, pad=-1),
        )
        return BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config).build()[0]
