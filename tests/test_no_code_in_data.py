"""No data file can run code: a static walk over everything that is shipped finds no sink (law L9).

There are two exceptions. The parity check may let transformers run the modelling file that we ourselves have just
written beside an export. The checkpoint's index of shards, which torch writes as a pickle, is read with an unpickler
that knows a closed list of classes; that file may import pickle, but not call its open loaders.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.source_files import ROOT, Source, is_literal, keyword, shipped_sources, tracked_files

# Modules whose loaders run code that stands in the data.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
UNSAFE_CALLS = {
    "eval": "evaluates text",
    "exec": "executes text",
    "compile": "compiles text",
    "__import__": "imports by name",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "subprocess.getoutput": "runs a shell",
    "subprocess.getstatusoutput": "runs a shell",
    "pickle.load": "loads a pickle",
    "pickle.loads": "loads a pickle",
    "pickle.Unpickler": "loads a pickle",
    "torch.save": "writes a pickle; use safetensors or JSON",
    "torch.hub.load": "runs downloaded code",
    "pandas.read_pickle": "loads a pickle",
    "runpy.run_path": "runs a file",
    "runpy.run_module": "runs a module",
    "yaml.unsafe_load": "builds any object",
    "yaml.full_load": "is not SafeLoader",
    "yaml.unsafe_load_all": "builds any object",
    "yaml.full_load_all": "is not SafeLoader",
}
YAML_LOADERS = {"yaml.load", "yaml.load_all"}
SAFE_YAML = {"yaml.SafeLoader", "yaml.CSafeLoader"}
# May pass trust_remote_code, and only for a folder that this project has just written.
RUNS_OUR_MODELLING_FILE = ("checkpoint_convert/reload_hf.py",)
# May import pickle, for an Unpickler with its own find_class.
CLOSED_UNPICKLER = ("megatron_ext/checkpoint/index.py",)


def sinks(source: Source) -> Iterator[str]:
    """Every place in one file where data could become code, as `path:line: what`."""
    closed = source.is_in(*CLOSED_UNPICKLER)
    for module, line in source.imports:
        if module.partition(".")[0] in UNSAFE_MODULES and not (closed and module == "pickle"):
            yield f"{source.path}:{line}: imports {module}"
    for node in ast.walk(source.tree):
        if is_open_unpickler(source, node):
            yield f"{source.at(node)}: an open unpickler"
    for call, name in source.calls():
        reason = unsafe_call(source, call, name) or unsafe_keyword(source, call)
        if reason:
            yield f"{source.at(call)}: {name or 'a call'} {reason}"


def is_open_unpickler(source: Source, node: ast.AST) -> bool:
    """Whether the node is a subclass of pickle.Unpickler that does not choose which classes may be named."""
    if not isinstance(node, ast.ClassDef) or "pickle.Unpickler" not in map(source.dotted, node.bases):
        return False
    return "find_class" not in {getattr(entry, "name", "") for entry in node.body}


def unsafe_call(source: Source, call: ast.Call, name: str) -> str:
    """Why the called function is unsafe, '' when it is not."""
    if name in UNSAFE_CALLS:
        return UNSAFE_CALLS[name]
    if name == "importlib.import_module" and not (call.args and isinstance(call.args[0], ast.Constant)):
        return "imports a module whose name is not written here"
    if name == "torch.load" and not is_literal(keyword(call, "weights_only"), True):
        return "has no weights_only=True"
    if name in YAML_LOADERS and yaml_loader(source, call) not in SAFE_YAML | safe_loader_subclasses(source):
        return "has no SafeLoader"
    return ""


def unsafe_keyword(source: Source, call: ast.Call) -> str:
    """Why a keyword argument is unsafe, '' when none is."""
    if keyword(call, "shell") is not None and not is_literal(keyword(call, "shell"), False):
        return "has shell="
    if keyword(call, "allow_pickle") is not None and not is_literal(keyword(call, "allow_pickle"), False):
        return "has allow_pickle="
    if keyword(call, "weights_only") is not None and not is_literal(keyword(call, "weights_only"), True):
        return "has weights_only other than True"
    trust = keyword(call, "trust_remote_code")
    if trust is not None and not is_literal(trust, False) and not source.is_in(*RUNS_OUR_MODELLING_FILE):
        return "has trust_remote_code="
    return ""


def yaml_loader(source: Source, call: ast.Call) -> str:
    """The dotted name of the loader given to yaml.load, '' when there is none."""
    loader = keyword(call, "Loader") or (call.args[1] if len(call.args) > 1 else None)
    return source.dotted(loader) if loader is not None else ""


def safe_loader_subclasses(source: Source) -> set[str]:
    """Classes of this file that derive from SafeLoader alone."""
    classes = [node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if [source.dotted(base) in SAFE_YAML for base in node.bases] == [True]}


def test_no_shipped_python_file_has_a_sink():
    found = [sink for source in shipped_sources() for sink in sinks(source)]
    assert not found, "\n" + "\n".join(found)


def test_no_native_file_starts_a_process_or_loads_a_library():
    pattern = re.compile(r"\b(?:system|popen|exec[lv]p?e?|fork|dlopen)\s*\(")
    for path in tracked_files():
        if path.startswith("csrc/"):
            text = (ROOT / path).read_text(encoding="utf-8")
            assert not pattern.search(text), f"{path}: {pattern.search(text)}"


def snippet(text: str, path: str = "megatron_ext/example.py") -> Source:
    return Source(path, text, ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import cloudpickle as c",
        "eval(text)",
        "exec(open(p).read())",
        "import os\nos.system('x')",
        "from os import popen\npopen('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import subprocess as s\ns.run('x', shell=flag)",
        "import yaml\nyaml.load(f)",
        "import yaml\nyaml.load(f, Loader=yaml.FullLoader)",
        "import yaml\nyaml.load(f, yaml.Loader)",
        "import yaml\nclass L(yaml.Loader): pass\nyaml.load(f, Loader=L)",
        "import yaml\nyaml.unsafe_load(f)",
        "import torch\ntorch.load(f)",
        "import torch as t\nt.load(f, weights_only=False)",
        "from torch import load\nload(f, weights_only=flag)",
        "import torch\ntorch.save(x, f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy as np\nnp.lib.format.read_array(f, allow_pickle=flag)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "import importlib\nimportlib.import_module(config['target'])",
    ],
)
def test_each_kind_of_sink_is_caught(text: str):
    assert list(sinks(snippet(text)))


@pytest.mark.parametrize(
    "text",
    [
        "import yaml\nyaml.safe_load(f)",
        "import yaml\nclass L(yaml.SafeLoader): pass\nyaml.load(f, Loader=L)",
        "import torch\ntorch.load(f, weights_only=True)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import re\nre.compile('x')",
        "model.eval()",
        "import subprocess\nsubprocess.run(['x'])",
        "import importlib\nimportlib.import_module('megatron.core')",
        "AutoModel.from_pretrained(p, trust_remote_code=False)",
    ],
)
def test_safe_code_passes(text: str):
    assert not list(sinks(snippet(text)))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import pickle\nclass U(pickle.Unpickler):\n    def find_class(self, m, n): raise ValueError\nU(f).load()", 0),
        ("import pickle\nclass U(pickle.Unpickler):\n    pass\nU(f).load()", 1),
        ("import pickle\npickle.loads(b)", 1),
        ("import pickle\npickle.Unpickler(f).load()", 1),
        ("import dill", 1),
    ],
)
def test_the_index_of_shards_is_read_with_a_closed_unpickler_only(text: str, count: int):
    assert len(list(sinks(snippet(text, CLOSED_UNPICKLER[0])))) == count
    assert list(sinks(snippet(text)))


def test_remote_code_is_possible_in_the_parity_check_only():
    text = "AutoModel.from_pretrained(p, trust_remote_code=True)"
    assert not list(sinks(snippet(text, RUNS_OUR_MODELLING_FILE[0])))
    assert list(sinks(snippet(text, "tools/example.py")))
