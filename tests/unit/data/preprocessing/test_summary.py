"""The table at the end of a run accounts for every record, and says where the bad ones are."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.data.preprocessing.outputs import OutputLayout
from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.preprocessing.summary import summary_lines


def test_the_summary_accounts_for_every_record(tmp_path: Path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "1 2"}\n\n{"text": ""}\n')
    manifests = preprocess(PreprocessRequest((str(path),), str(tmp_path / "out"), "NullTokenizer", vocab_size=9))
    heads, row, reasons = summary_lines(OutputLayout(str(tmp_path / "out"), ("text",), "uint16"), manifests)
    assert heads.split() == [
        "dataset",
        "records",
        "documents",
        "quarantined",
        "empty",
        "tokens",
        "largest",
        "id",
        "type",
    ]
    assert row.split() == [str(tmp_path / "out_text_document"), "3", "1", "1", "1", "2", "2", "uint16"]
    assert reasons == f"quarantined records are in {tmp_path / 'out.quarantine.jsonl'}: 1 blank line"
