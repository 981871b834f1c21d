"""Files are read strictly; what is wrong is told with file and line; nothing in them is executed."""

import pytest

from megatron_ext.config import RunConfig
from megatron_ext.config.load import resolve
from megatron_ext.config.yaml_files import Entry, read_entries
from megatron_ext.errors import ConfigError


@pytest.fixture
def files(tmp_path):
    def write(*texts):
        argv = []
        for number, text in enumerate(texts):
            path = tmp_path / f"{number}.yaml"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            argv += ["--config", str(path)]
        return argv

    return write


def message_of(argv):
    with pytest.raises(ConfigError) as error:
        resolve(argv, None)
    return str(error.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "model:\n", "---\n"])
def test_an_empty_file_or_section_says_nothing(files, text):
    assert resolve(files(text), None).run == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  num_layer: 3", "0.yaml:2: unknown key model.num_layer; did you mean num_layers?"),
        ("model:\n  lr: 3", "0.yaml:2: lr belongs to section optim, not model"),
        ("modell:\n  num_layers: 3", "0.yaml:2: unknown section modell; did you mean model?"),
        ("zebra:\n  num_layers: 3", "unknown section zebra; the sections are model, parallel, data"),
        ("model:\n  moe_ffn_hidden_size: 3", "0.yaml:2: model.moe_ffn_hidden_size is not accepted: mixture of experts"),
        ("model:\n  num_layers: 3\n  num_layers: 3", "0.yaml:3: num_layers is already given in line 2"),
        ("model:\n  num_layers: 3\nmodel:\n  hidden_size: 3", "0.yaml:3: model is already given in line 1"),
        ("model:\n  num_layers: many", "0.yaml:2: model.num_layers is 'many'; expected integer"),
        ("model:\n  num_layers: 2.0", "0.yaml:2: model.num_layers is '2.0'; expected integer"),
        ("model:\n  num_layers: [1, 2]", "0.yaml:2: model.num_layers is a list; expected integer"),
        ("model:\n  swiglu: 1", "0.yaml:2: model.swiglu is '1'; expected true or false"),
        ("model:\n  swiglu: null", "0.yaml:2: model.swiglu cannot be null"),
        ("model:\n  normalization: rms", "expected one of LayerNorm, RMSNorm"),
        ("data:\n  data_path: []", "0.yaml:2: data.data_path is ()"),
        ("data:\n  data_path: [[a]]", "0.yaml:2: data_path is not a plain value"),
        ("data:\n  split: {a: b}", "0.yaml:2: split is not a plain value"),
        ("data:\n  split: !!python/object/apply:os.getcwd []", "0.yaml:2: data.split is a list"),
        ("data:\n  split: !!python/name:os.getcwd x", "0.yaml:2: split is not a plain value"),
        ("- a", "0.yaml:1: expected a mapping of sections"),
        ("model: 3", "0.yaml:1: expected a mapping of settings of model"),
        ("model:\n  ? [a]\n  : b", "0.yaml:2: a key is not a word"),
        ("model: {", "0.yaml:1: not valid YAML"),
        ("model:\n\tnum_layers: 3", "0.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        (b"\xff\xfe", "0.yaml: not UTF-8 text"),
    ],
)
def test_wrong_files_are_told_with_file_and_line(files, text, message):
    assert message in message_of(files(text))


def test_missing_file_and_folder(tmp_path):
    assert "No such file" in message_of(["--config", str(tmp_path / "none.yaml")])
    assert "Is a directory" in message_of(["--config", str(tmp_path)])


def test_entries_keep_text_order_and_place(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("optim: {lr: 1e-4}\ndata:\n  data_path:\n  - a\n  - 'b c'\n  split: ~\n")
    assert read_entries(str(path)) == [
        Entry("optim", "lr", "1e-4", f"{path}:1"),
        Entry("data", "data_path", ["a", "b c"], f"{path}:3"),
        Entry("data", "split", None, f"{path}:6"),
    ]
