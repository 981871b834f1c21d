"""The loss of documents under a small reference model: any exported checkpoint that transformers can open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import megatron_ext
from megatron_ext.data.curriculum.document_blocks import DocumentBlock, document_ranges
from megatron_ext.data.curriculum.score_run import PassResult
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError

_BLOCK_TOKENS = 1 << 16  # documents are batched by length inside a block
_BATCH_LOGITS = 1 << 26  # most logits of a batch with more than one document: 256 MiB in fp32
_ROWS = 1024  # tokens whose probabilities are computed in one go
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "model_max_length")


class ModelPass:
    """Scores documents by the mean loss of their tokens, in nats, under a model that is not trained further.

    The first token has nothing before it and is not counted; a document of less than two tokens scores 0. Documents
    are cut to the model's context. The weights compute in fp32, on the GPU if there is one; batches are the same in
    every run, whatever is resumed, so that equal machines give equal scores.

    Args:
        dataset: the opened dataset.
        folder: Hugging Face folder with config.json and safetensors.

    Raises:
        DataError: the folder cannot be opened, or its vocabulary is smaller than the ids of the dataset.
    """

    def __init__(self, dataset: IndexedDataset, folder: Path) -> None:
        self._dataset, self._folder = dataset, folder
        self._sha256 = _fingerprint(folder)
        self._model = _load(folder)
        config = self._model.config
        self._vocab_size = int(config.vocab_size)
        found = (getattr(config, name, None) for name in _CONTEXT_NAMES)
        self._context = next((length for length in found if isinstance(length, int) and length > 1), 0)
        if not self._context:
            raise DataError(
                f"{folder}/config.json does not tell the model's context",
                f"It has one of {', '.join(_CONTEXT_NAMES)}",
                "Export the checkpoint again",
            )
        if dataset.manifest is not None:
            self._check_ids(dataset.manifest.largest_id)

    @property
    def made_by(self) -> dict[str, dict[str, Any]]:
        """Name of the score file -> how its scores are made."""
        facts = {
            "metric": "model",
            "says": f"loss per token under {self._folder.name}, nats",
            "model": str(self._folder),
            "sha256": self._sha256,
            "context": self._context,
            "tool_version": megatron_ext.__version__,
        }
        return {"model": facts}

    def results(self, state: dict[str, Any] | None) -> Iterator[PassResult]:
        """The scores of all documents, or of those behind the documents that gave `state`."""
        for documents in document_ranges(self._dataset, state["documents"] if state else 0, _BLOCK_TOKENS):
            block = DocumentBlock(self._dataset, documents)
            self._check_ids(int(block.tokens.max(initial=0)))
            yield PassResult(self._losses(block)[None], {"documents": documents.last})

    def _losses(self, block: DocumentBlock) -> NDArray[np.float64]:
        ends = np.cumsum(block.lengths)
        begins, lengths = ends - block.lengths, np.minimum(block.lengths, self._context)
        losses = np.zeros(len(lengths))
        by_length = np.argsort(-lengths, kind="stable")
        waiting = by_length[lengths[by_length] > 1]
        while len(waiting):
            longest = int(lengths[waiting[0]])
            batch = waiting[: max(1, _BATCH_LOGITS // (longest * self._vocab_size))]
            ids = np.zeros((len(batch), longest), np.int64)  # what fills up stands behind: nobody attends to it
            for row, place in enumerate(batch):
                ids[row, : lengths[place]] = block.tokens[begins[place] : begins[place] + lengths[place]]
            losses[batch] = self._batch_losses(ids, lengths[batch])
            waiting = waiting[len(batch) :]
        return losses

    def _batch_losses(self, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        import torch

        with torch.inference_mode():
            tokens = torch.from_numpy(ids).to(self._model.device)
            logits = self._model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
            labels = tokens[:, 1:].flatten()
            costs = [
                torch.nn.functional.cross_entropy(
                    logits[first : first + _ROWS].float(), labels[first : first + _ROWS], reduction="none"
                )
                for first in range(0, len(labels), _ROWS)
            ]
            table = torch.cat(costs).view(len(ids), -1).double().cpu().numpy()
        counted = np.arange(table.shape[1]) < (lengths - 1)[:, None]
        return (table * counted).sum(axis=1) / (lengths - 1)

    def _check_ids(self, largest: int) -> None:
        if largest >= self._vocab_size:
            raise DataError(
                f"{self._dataset.prefix} holds the id {largest}",
                f"The model in {self._folder} has ids 0 to {self._vocab_size - 1}",
                "Give a model that was trained with the tokenizer of this dataset",
            )


def _load(folder: Path) -> Any:
    import torch
    import transformers

    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise DataError(
            f"--model {folder} cannot be opened ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            "It has config.json and safetensors of an architecture that transformers knows; no code of a folder is run",
            "Export the checkpoint again",
        ) from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _fingerprint(folder: Path) -> str:
    """The sha256 of the configuration and the weights, in the order of the names."""
    paths = sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")])
    if len(paths) < 2:
        raise DataError(
            f"--model {folder} is no Hugging Face folder", "It has config.json and at least one .safetensors file"
        )
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from None
    return digest.hexdigest()
