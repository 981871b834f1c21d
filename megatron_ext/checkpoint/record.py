"""What a checkpoint keeps besides tensors: one JSON file, floats exact, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_ext.checkpoint.manifest import is_plain_name
from megatron_ext.config import RunConfig, run_config_from_dict, run_config_to_dict
from megatron_ext.errors import CheckpointError, MegatronExtError

RECORD = "state.json"
FORMAT = 1


@dataclass(frozen=True)
class CheckpointRecord:
    """The plain part of a checkpoint.

    Attributes:
        run: the configuration it was trained with.
        vocab_size: tokens the tokenizer knows; the saved matrices may have more rows (padding).
        state: the counters of `TrainState`.
        schedule: the settings of the learning-rate and weight-decay schedules; empty for an imported model.
        optimizer_step: updates made; None when the optimizer state was not saved.
        loss_scaler: numbers of the dynamic loss scaler, if there was one.
        data: fingerprint of the training data order, to notice other data on resume.
        sources: what the run keeps of the datasets of a blend, and what it decided about their weights; empty without.
        tokenizer_files: names of the tokenizer's files in the checkpoint's `tokenizer/` folder.
        provenance: what a model card should say; free text by name.
    """

    run: RunConfig
    vocab_size: int
    state: dict[str, int]
    schedule: dict[str, Any] = field(default_factory=dict)
    optimizer_step: int | None = None
    loss_scaler: dict[str, float] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    tokenizer_files: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def iteration(self) -> int:
        """Iterations trained."""
        return self.state["iteration"]


def write_record(folder: Path, record: CheckpointRecord) -> None:
    """Write the record into a checkpoint folder that is being made."""
    values = {**asdict(record), "run": run_config_to_dict(record.run), "format": FORMAT}
    (folder / RECORD).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> CheckpointRecord:
    """Read the record of a checkpoint.

    Raises:
        CheckpointError: it is missing, unreadable, or of another format.
    """
    path = folder / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("format")
        if found != FORMAT:
            raise CheckpointError(f"{path} has format {found}", f"this release reads format {FORMAT}")
        record = CheckpointRecord(**{**values, "run": run_config_from_dict(values["run"])})
        _check_values(record)
        return record
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, so {folder} is not a checkpoint of this project") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__} {error}") from None
    except CheckpointError:
        raise
    except MegatronExtError as error:
        raise CheckpointError(f"{path} holds a configuration that this release does not know: {error}") from None


def _check_values(record: CheckpointRecord) -> None:
    """What later code relies on: counters that are numbers, and file names that stay in their folder."""
    counters = [record.vocab_size, record.state["iteration"], record.state["consumed_samples"], *record.state.values()]
    if any(type(counter) is not int or counter < 0 for counter in counters):
        raise ValueError("a counter is not a number")
    if any("/" in name or not is_plain_name(name) for name in record.tokenizer_files):
        raise ValueError("the name of a tokenizer file points outside the checkpoint")
