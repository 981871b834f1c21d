r"""Say which documents of which files a training step sees: from the data and its order alone, without training.

Examples:
    python tools/explain_batch.py --step 40000 --run-folder runs/first
    python tools/explain_batch.py --step 40000 --data-path data/corpus_text_document --split 969,30,1 \
        --seq-length 2048 --dataset-order easy_first.order --seed 1234 --global-batch-size 128

Takes every flag of pretrain_gpt.py that decides the data, or the --save folder of a run, which keeps its settings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megatron_ext.config.flags import SettingsParser, build_parser
from megatron_ext.config.load import resolve
from megatron_ext.config.run import RunConfig, run_config_from_dict
from megatron_ext.errors import ConfigError, run_command

if TYPE_CHECKING:
    from megatron_ext.data.views import TokenRange, View
    from megatron_ext.tokenizer.base import Tokenizer


def main(argv: list[str]) -> None:
    """Print the samples of the step.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    own = _own_flags()
    if {"-h", "--help"} & set(argv):
        build_parser("tools/explain_batch.py", __doc__, parents=[own]).print_help()
        return
    options, rest = own.parse_known_args(argv)
    run = run_of(options.run_folder, options.world_size, rest)
    tokenizer = tokenizer_of(run)
    consumed, ids, view = step_samples(run, tokenizer, options.step, options.run_folder or run.checkpoint.save)
    if options.json:
        print(json.dumps({"iteration": options.step, "sample_ids": ids}))
        return
    print(f"step {options.step}: samples {consumed} to {consumed + len(ids) - 1} of the stream")
    for place, sample_id in enumerate(ids, start=consumed):
        print(f"--- sample {sample_id} at place {place}")
        for tokens in view.token_ranges(sample_id):
            _print_documents(tokens, tokenizer, options.max_tokens)


def run_of(run_folder: Path | None, world_size: int | None, flags: list[str]) -> RunConfig:
    """The settings of a run: those that its folder keeps, or those of the flags.

    Raises:
        ConfigError: the folder keeps none, or flags are given beside it.
    """
    if run_folder is None:
        return resolve(flags, world_size).run
    if flags:
        raise ConfigError(f"{flags[0]} is given beside --run-folder", "The folder says all settings of its run")
    try:
        values = yaml.safe_load((run_folder / "run_config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--run-folder {run_folder} has no readable run_config.yaml ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{run_folder / 'run_config.yaml'} does not hold the settings of a run")
    return run_config_from_dict(values)


def tokenizer_of(run: RunConfig) -> Tokenizer:
    """The tokenizer of the flags; else the one that made the (first) dataset.

    Raises:
        MegatronExtError: no dataset is named, or nothing says which tokenizer it is.
    """
    from megatron_ext.data.blend import parse_blend
    from megatron_ext.data.store.dataset_tokenizer import TokenizerFlags, open_tokenizer
    from megatron_ext.data.store.manifest import read_manifest
    from megatron_ext.tokenizer.build import build_tokenizer

    data = run.data
    if data.tokenizer_type:
        return build_tokenizer(data.tokenizer_type, data.tokenizer_model, run.model.vocab_size)
    paths = data.data_path or data.train_data_path
    if not paths:
        raise ConfigError("there is no training data", fix="Give --data-path, --train-data-path or --run-folder")
    return open_tokenizer(read_manifest(parse_blend(paths, "--data-path")[0][0]), TokenizerFlags())


def step_samples(
    run: RunConfig, tokenizer: Tokenizer, step: int, folder: Path | str | None = None
) -> tuple[int, list[int], View]:
    """Samples consumed before a step, the sample ids of the step, and the view they belong to.

    Args:
        run: the settings of a run.
        tokenizer: the one the data was made with.
        step: the first is 1.
        folder: the --save folder of the run, which keeps its decisions about the weights of a blend.

    Raises:
        MegatronExtError: there is no such step, or the data cannot be opened.
    """
    from megatron_ext.data.datasets import DatasetRequest, build_datasets
    from megatron_ext.training.batch_size import iterations_to_samples, total_samples

    if run.train.global_batch_size is None and run.train.micro_batch_size is None:
        raise ConfigError("the size of a batch is not known", fix="Give --global-batch-size")
    length_is_known = run.train.train_iters is not None or run.samples_of("train") is not None
    if step < 1 or (length_is_known and step > run.total_train_iters):
        raise ConfigError(
            f"there is no step {step}",
            f"Steps begin at 1 and end at {run.total_train_iters if length_is_known else 'the end of the run'}",
        )
    if run.train.seq_length is None:
        raise ConfigError("the length of a sample is not known", fix="Give --seq-length")
    if run.data.dataset_order == "megatron" and not length_is_known:
        raise ConfigError("the megatron order depends on the length of the run", fix="Give --train-iters")
    consumed = iterations_to_samples(run, step - 1)
    size = run.global_batch_size_at(consumed)
    wanted = (total_samples(run) if length_is_known else consumed + size, 0, 0)
    request = DatasetRequest(run.data, tokenizer, run.train.seq_length, wanted, run.train.seed)
    view = build_datasets(request).train
    assert view is not None, "a training view is asked for"
    _decide_as_the_run(run, view, step, Path(folder) if folder else None)
    return consumed, view.sample_ids(consumed, size).tolist(), view


def _decide_as_the_run(run: RunConfig, view: View, step: int, folder: Path | None) -> None:
    """Let the weights of a blend change as the run decided before a step.

    Raises:
        ConfigError: the run has not come as far, or its decisions are not for this data.
    """
    from megatron_ext.training.blend_policy import apply_decisions, check_policy
    from megatron_ext.training.metrics import METRICS_FILE, read_records
    from megatron_ext.training.source_losses import WEIGHTS_FILE, Decision

    check_policy(run.data, view)
    records = read_records(folder / WEIGHTS_FILE) if folder else []
    try:
        decisions = [Decision.from_record(record) for record in records if record["iteration"] < step]
    except ValueError as error:
        raise ConfigError(f"{folder}/{WEIGHTS_FILE} cannot be read: {error}") from None
    if not apply_decisions(view, decisions):
        raise ConfigError(f"{folder}/{WEIGHTS_FILE} has weights for other datasets than those of the run")
    interval = run.data.blend_reweight_interval
    last_due = (step - 1) // interval * interval if interval else 0
    if last_due > (decisions[-1].iteration if decisions else 0):
        trained = read_records(folder / METRICS_FILE) if folder else []
        if not trained or trained[-1]["iteration"] < step:
            raise ConfigError(
                f"step {step} is drawn by weights that follow from the losses up to step {last_due}",
                f"{folder}/{WEIGHTS_FILE} does not have them yet" if folder else "They are kept in the --save folder",
                "Ask again when the run has come as far" if folder else "Give --run-folder",
            )


def _print_documents(tokens: TokenRange, tokenizer: Any, max_tokens: int) -> None:
    from megatron_ext.data.document_parts import document_parts, input_path
    from megatron_ext.data.store.document_text import BRACKETS, DocumentText

    store = tokens.store
    text = DocumentText(tokenizer, False, BRACKETS, eod_id=tokenizer.eod_id)
    at = tokens.begin
    for part in document_parts(store, tokens.begin, tokens.end):
        source = input_path(store.manifest, part.document)
        print(
            f"{store.prefix} document {part.document}, tokens {part.first} to {part.last - 1} of {part.length}"
            + (f", from {source}" if source else "")
        )
        count = part.last - part.first
        shown = text.render(store.tokens[at : at + min(count, max_tokens)], None)
        print("  " + shown.replace("\n", "\n  ") + (" ..." if count > max_tokens else ""))
        at += count


def _own_flags() -> argparse.ArgumentParser:
    parser = SettingsParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("explain_batch", "Which step, and how to print it.")
    group.add_argument("--step", type=int, required=True, help="number of the step as in the log, the first is 1")
    group.add_argument("--run-folder", type=Path, help="the --save folder of the run, in place of its flags")
    group.add_argument("--world-size", type=int, help="processes of the job, where it decides the batch size")
    group.add_argument("--max-tokens", type=int, default=24, help="tokens shown of each document (default: 24)")
    group.add_argument("--json", action="store_true", help="print one line as --log-sample-ids writes it")
    return parser


if __name__ == "__main__":
    run_command(main)
