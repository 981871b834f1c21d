from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.small import train_sentence_piece


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentence_piece(tmp_path_factory.mktemp("tokenizer") / "small.model")
