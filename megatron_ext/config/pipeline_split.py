"""Which transformer layers each chunk of each pipeline stage holds: pure arithmetic over the flags, no torch.

Layers go to the chunks in the order in which a sample passes them: first chunk of every stage, then second chunk of
every stage, and so on. Source of the closed forms: megatron-core 0.16.1 transformer/transformer_block.py
(get_num_layers_to_build) and transformer/pipeline_parallel_layer_layout.py.
"""

from __future__ import annotations

import re

from megatron_ext.config.sections.parallel import ParallelConfig

Chunks = tuple[tuple[int, ...], ...]
"""Transformer layers of each chunk, `[pp][vpp]`."""

# repetitions of three digits: a typing error must not make a text of gigabytes
_ATOM = r"[EtL|](?:\*\d{1,3})?"
_ITEM = rf"\((?:{_ATOM})+\)\*\d{{1,3}}|{_ATOM}"


def read_layout(text: str) -> tuple[str, ...]:
    """The stages of a layout string in the order a sample passes them, each as its letters: E, t and L.

    `|` ends a stage, `x*n` repeats a letter or a bar, `(...)*n` a group without further groups; commas are ornament:
    `Et*3|(tt|)*2,tL` is `("Ettt", "tt", "tt", "tL")`.

    Raises:
        ValueError: where the text stops being a layout.
    """
    plain = text.replace(",", "")
    read = re.match(rf"(?:{_ITEM})*", plain)
    rest = plain[read.end() if read else 0 :]
    if rest:
        raise ValueError(
            f"{rest!r} is no part of a layout: E is the embedding, t a transformer layer, L the loss, | ends a stage, "
            "x*n and (...)*n repeat"
        )
    for pattern in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        plain = re.sub(pattern, lambda found: found[1] * int(found[2]), plain)
    return tuple(plain.split("|"))


def layout_stages(parallel: ParallelConfig) -> tuple[str, ...] | None:
    """What `read_layout` makes of --pipeline-model-parallel-layout; None without one that can be read."""
    text = parallel.pipeline_model_parallel_layout
    if text is None:
        return None
    try:
        return read_layout(text)
    except ValueError:
        return None


def units_of_stages(parallel: ParallelConfig, num_layers: int) -> tuple[int, ...] | None:
    """Layers of each stage, all chunks together, with the embedding or the loss where they count as one.

    None where the flags leave no equal shares. The layout string plays no part.
    """
    first, last = parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage
    begin, end = (() if own is None else (own,) for own in (first, last))
    stages = parallel.pipeline_model_parallel_size - len(begin) - len(end)
    rest = num_layers + parallel.parts_counted_as_layers - sum(begin) - sum(end)
    if stages < 0 or (stages == 0) != (rest == 0) or rest < 0 or (stages and rest % stages):
        return None
    return (*begin, *([rest // stages] * stages if stages else ()), *end)


def layers_of_chunks(parallel: ParallelConfig, num_layers: int, chunks: int) -> Chunks | None:
    """Transformer layers of each chunk, `[pp][vpp]`; None for settings that the rules refuse.

    Args:
        parallel: the stages.
        num_layers: transformer layers of the model.
        chunks: chunks of each stage, 1 without the interleaved schedule.
    """
    stages, pp = layout_stages(parallel), parallel.pipeline_model_parallel_size
    if stages is not None:
        counts = [stage.count("t") for stage in stages]
        return None if len(counts) % pp else tuple(tuple(counts[rank::pp]) for rank in range(pp))
    units = units_of_stages(parallel, num_layers)
    if units is None or any(number % chunks for number in units):
        return None
    table = [[number // chunks] * chunks for number in units]
    table[0][0] -= parallel.account_for_embedding_in_pipeline_split
    table[-1][-1] -= parallel.account_for_loss_in_pipeline_split
    return tuple(map(tuple, table))
