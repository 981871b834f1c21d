"""What is trained on, in which order, and the tokenizer that made it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob

_BLEND = "PREFIX, or WEIGHT PREFIX WEIGHT PREFIX ..., or several PREFIXes weighted by their size"
TOKENIZER_TYPES = (
    "SentencePieceTokenizer",
    "GPTSentencePieceTokenizer",
    "Llama2Tokenizer",
    "HuggingFaceTokenizer",
    "TikTokenizer",
    "NullTokenizer",
)
DATASET_ORDERS = ("permuted", "megatron", "sequential")
DATASET_PACKINGS = ("stream", "documents")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Datasets, splits, order and tokenizer."""

    data_path: tuple[str, ...] | None = knob(None, f"dataset to cut by --split: {_BLEND}")
    train_data_path: tuple[str, ...] | None = knob(None, f"training dataset: {_BLEND}")
    valid_data_path: tuple[str, ...] | None = knob(None, f"validation dataset: {_BLEND}")
    test_data_path: tuple[str, ...] | None = knob(None, f"test dataset: {_BLEND}")
    blend_schedule: tuple[str, ...] | None = knob(
        None,
        "training weights that move: TOKENS:WEIGHT,WEIGHT,... TOKENS:..., one weight for each prefix of --data-path "
        "(which then gives none), in straight lines over consumed tokens, as in 0:9,1 2e9:4,1",
    )
    split: str = knob("969, 30, 1", "shares of --data-path for training, validation, test")
    dataset_order: str = knob(
        "permuted",
        "order of the samples: permuted (computed per index), megatron (GPTDataset index for index), sequential, "
        "or the path of an order file",
    )
    dataset_packing: str = knob(
        "stream",
        "what a sample is: a window of the documents laid end to end (stream), or one document padded to "
        "--seq-length (documents), for fine-tuning rows and packed blocks",
        choices=DATASET_PACKINGS,
    )
    pad_last_sample: bool = knob(
        False, "pad the tail of a dataset to one more sample, never learned there, instead of leaving it out"
    )
    num_workers: int = knob(2, "loader processes per rank; 0 loads in the training process", bounds="[0, inf)")
    eod_mask_loss: bool = knob(False, "no loss on end-of-document tokens")
    reset_position_ids: bool = knob(False, "count positions from 0 again after each end of document")
    reset_attention_mask: bool = knob(False, "no token attends to another document of its sample")
    tokenizer_type: str | None = knob(None, "kind of tokenizer the data was made with", choices=TOKENIZER_TYPES)
    tokenizer_model: str | None = knob(None, "the tokenizer's file, or folder for HuggingFaceTokenizer")
    data_cache_path: str | None = knob(None, "folder for the index arrays of --dataset-order megatron")
    blend_reweight_interval: int | None = knob(
        None,
        "steps between changes of the training weights by the loss of each dataset: what is harder is seen more",
        unit="iterations",
        bounds="[1, inf)",
    )
    blend_reweight_rate: float = knob(
        1.0, "a weight grows by the factor exp(rate x loss above the reference, or above the mean)", bounds="(0, inf)"
    )
    blend_reweight_floor: float = knob(
        0.1, "share of the first weights in all later ones, so that no dataset is given up", bounds="[0, 1)"
    )
    blend_reference_losses: tuple[str, ...] | None = knob(
        None,
        "LOSS LOSS ...: the loss that each dataset should reach, in the order of --data-path, as of a smaller model "
        "trained before; without them a loss is compared with the mean of all",
    )
