"""Settings that are unknown or would change nothing are refused with the name of their flag."""

from __future__ import annotations

import pytest

from megatron_ext.data.rows.row_checks import check_rows
from megatron_ext.data.rows.settings import FimSettings, RowSettings
from megatron_ext.errors import DataError

REFUSED = [
    (RowSettings("txt"), r"--row-format txt.*Did you mean text\?"),
    (RowSettings("conversations", json_keys=("a",)), "--json-keys a .*--row-format conversations.*--field"),
    (RowSettings("text", json_keys=("a", "a")), "--json-keys names 'a' twice"),
    (RowSettings("text", fields=(("text", "a"),)), "--field text=a .*--json-keys"),
    (RowSettings("completion", fields=(("contxt", "a"),)), r"--field contxt=a.*Did you mean context\?"),
    (RowSettings("completion", fields=(("completion", ""),)), "--field completion= names no column"),
    (RowSettings("text", chat_template="chatml"), "--chat-template chatml .*--row-format text"),
    (RowSettings("yuan", chat_template="chatml"), "--chat-template chatml .*--row-format yuan"),
    (RowSettings("moss", chat_template="chatml"), "--chat-template chatml .*--row-format moss.*moss"),
    (RowSettings("conversations", chat_template="Chatml"), r"--chat-template Chatml.*Did you mean chatml\?"),
    (RowSettings("text", label_rule="m2"), "--label-rule m2 .*--row-format text"),
    (RowSettings("completion", label_rule="m9"), r"--label-rule m9.*m8 \(after-separator\)"),
    (RowSettings("text", separator="x"), "--separator .*--row-format text"),
    (RowSettings("moss", system_text="x"), "--system-text .*--row-format moss"),
    (RowSettings("conversations", chat_template="belle", system_text="x"), "--system-text: chat template belle"),
    (RowSettings("preference", system_text="x"), "--system-text needs a --chat-template"),
    (RowSettings("instruction", roles=(("a", "user"),)), "--role .*--row-format instruction"),
    (RowSettings("conversations", roles=(("a", "users"),)), r"--role a=users.*Did you mean user\?"),
    (RowSettings("text", max_length=1), "--max-length 1"),
    (RowSettings("text", over_long="drop"), "--over-long drop needs --max-length"),
    (RowSettings("text", max_length=9, over_long="keep"), "--over-long keep"),
    (RowSettings("text", fim=FimSettings(rate=1.5)), "--fim-rate 1.5"),
    (RowSettings("text", fim=FimSettings(rate=float("nan"))), "--fim-rate nan"),
    (RowSettings("text", fim=FimSettings(rate=0.5, spm_rate=-1)), "--fim-spm-rate -1"),
    (RowSettings("text", fim=FimSettings(rate=0.5, seed=2**63)), "--seed"),
    (RowSettings("completion", fim=FimSettings(rate=0.5)), "--fim-rate 0.5 .*--row-format completion"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_wrong_settings_name_their_flag(settings: RowSettings, message: str):
    with pytest.raises(DataError, match=message):
        check_rows(settings)


@pytest.mark.parametrize(
    "settings",
    [
        RowSettings(),
        RowSettings("text", json_keys=("a", "b"), fim=FimSettings(rate=1.0, spm_rate=0.0), max_length=2),
        RowSettings("completion", fields=(("context", ""),), separator="\n", label_rule="completion"),
        RowSettings("conversations", chat_template="qwen", system_text="", roles=(("a", "tool"),)),
        RowSettings("preference", chat_template="chatml", system_text="x", roles=(("a", "user"),)),
        RowSettings("moss", chat_template="moss", label_rule="m2", max_length=9, over_long="drop"),
    ],
)
def test_settings_that_go_together_pass(settings: RowSettings):
    check_rows(settings)
