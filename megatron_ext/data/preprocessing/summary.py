"""What became of every record, as a table for the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ext.data.preprocessing.outputs import OutputLayout
from megatron_ext.data.store.manifest import DatasetManifest

_COLUMNS = ("dataset", "records", "documents", "quarantined", "empty", "tokens", "largest id", "type")


def summary_lines(layout: OutputLayout, manifests: Sequence[DatasetManifest]) -> list[str]:
    """A row per dataset (records = documents + quarantined + empty, law L5), then where bad records are and why."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for prefix, manifest in zip(layout.prefixes, manifests, strict=True):
        counts = manifest.records
        numbers = (counts.read, counts.written, counts.quarantined, counts.empty, manifest.tokens, manifest.largest_id)
        rows.append((prefix, *(f"{number:,}" for number in numbers), manifest.dtype))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    reasons = manifests[0].quarantined_by_reason
    if reasons:
        told = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        lines.append(f"quarantined records are in {layout.quarantine_path}: {told}")
    return lines
