"""The shape of the project, held by tests: who may import what, where special things happen, sizes, names, mirrors.

Each test lists every place that breaks its rule. Exceptions stand in the small tables at the top, with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from tests.source_files import ROOT, Source, python_sources, shipped_sources, tracked_files

TOP_LEVEL = {
    ".ci", ".gitignore", "LICENSE", "Makefile", "README.md", "CHANGELOG.md", "benchmarks", "checkpoint_convert",
    "configs", "csrc", "docs", "examples", "megatron_ext", "pretrain_gpt.py", "pyproject.toml", "requirements",
    "setup.py", "tests", "tools",
}  # fmt: skip

# Which of our own packages a folder may import. `pretrain_gpt.py`, tools and conversion stand above megatron_ext.
MAY_IMPORT = {
    "megatron_ext": {"megatron_ext"},
    "checkpoint_convert": {"megatron_ext", "checkpoint_convert"},
    "tools": {"megatron_ext", "checkpoint_convert", "tools"},
    "benchmarks": {"megatron_ext", "checkpoint_convert", "tools", "benchmarks"},
    "pretrain_gpt.py": {"megatron_ext"},
    "setup.py": set(),
    "examples": set(),
}
OUR_PACKAGES = {"megatron_ext", "checkpoint_convert", "tools", "benchmarks", "tests", "pretrain_gpt", "setup"}

# Modules that must answer at once: importing them brings neither torch nor numpy (see also unit/test_commands.py).
LIGHT = ("megatron_ext/__init__.py", "megatron_ext/errors.py", "megatron_ext/log.py", "megatron_ext/config")
HEAVY = {"torch", "megatron", "transformers", "numpy"}

CORE_CONFIGS = {
    "TransformerConfig", "MLATransformerConfig", "ModelParallelConfig", "OptimizerConfig",
    "DistributedDataParallelConfig", "GPTDatasetConfig", "BlendedMegatronDatasetConfig",
}  # fmt: skip
GROUP_STARTERS = {"init_process_group", "initialize_model_parallel", "new_group", "new_subgroups", "init_device_mesh"}
FORBIDDEN_STEMS = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
PRINTING = ("tools", "examples", "benchmarks", "setup.py", "megatron_ext/log.py")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_ENTRY_LINES = 60  # pretrain_gpt.py

# Sources without a test file of their own name, and the test that covers them.
TESTED_ELSEWHERE: dict[str, str] = {}
# Test files without a source of their own name: they hold several sources to one rule.
CROSS_CUTTING_TESTS = {"tests/unit/test_commands.py"}

Violations = Iterator[str]


def none_of(violations: Violations) -> None:
    found = sorted(set(violations))
    assert not found, "\n" + "\n".join(found)


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_top_level_is_the_fixed_list():
    none_of(path for path in tracked_files() if path.partition("/")[0] not in TOP_LEVEL)


def test_imports_point_one_way():
    def violations() -> Violations:
        for source in shipped_sources():
            folder = source.path.partition("/")[0]
            for module, line in source.imports:
                package = module.partition(".")[0]
                if package in OUR_PACKAGES and package not in MAY_IMPORT.get(folder, set()):
                    yield f"{source.path}:{line}: imports {module}"

    none_of(violations())


def test_light_modules_import_nothing_heavy_at_their_top():
    def violations() -> Violations:
        for source in shipped_sources():
            if not source.is_in(*LIGHT) or source.path == "megatron_ext/config/to_core.py":
                continue
            for node in top_level_statements(source.tree):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                for module in modules:
                    if module.partition(".")[0] in HEAVY:
                        yield f"{source.at(node)}: imports {module}"

    none_of(violations())


def top_level_statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run at import: not those inside functions or behind TYPE_CHECKING."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += node.body + node.orelse
        elif isinstance(node, ast.Try):
            pending += node.body + node.orelse + node.finalbody + [s for handler in node.handlers for s in handler.body]
        elif isinstance(node, ast.With | ast.ClassDef):
            pending += node.body


def test_modelling_files_shipped_with_exports_stand_alone():
    none_of(
        f"{source.path}:{line}: imports {module}"
        for source in shipped_sources()
        if source.is_in("checkpoint_convert/modeling")
        for module, line in source.imports
        if module.partition(".")[0] in OUR_PACKAGES | {"megatron"}
        and not module.startswith("checkpoint_convert.modeling.")
    )


def test_only_to_core_builds_megatron_core_config_objects():
    none_of(
        f"{source.at(call)}: builds {name}"
        for source in shipped_sources()
        if not source.is_in("megatron_ext/config/to_core.py", "benchmarks")
        for call, name in source.calls()
        if name.rpartition(".")[2] in CORE_CONFIGS
    )


def test_only_world_starts_process_groups():
    none_of(
        f"{source.at(call)}: calls {name}"
        for source in shipped_sources()
        if not source.is_in("megatron_ext/parallel/world.py")
        for call, name in source.calls()
        if name.rpartition(".")[2] in GROUP_STARTERS
    )


REPLACING = ("megatron_ext/platform/cpu.py", "megatron_ext/model/weight_gradient.py")
"""The CPU adapter, and what stands in for an extension of Apex that megatron-core did not find."""


def test_only_two_files_replace_anything_inside_torch_or_megatron():
    def violations() -> Violations:
        for source in python_sources():
            if any(map(source.is_in, REPLACING)):
                continue
            for node, target in replaced_attributes(source):
                if target.partition(".")[0] in {"torch", "megatron"} and not target.startswith("torch.backends."):
                    yield f"{source.at(node)}: assigns {target}"

    none_of(violations())


def replaced_attributes(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Assignments to attributes of imported names, and setattr on them."""
    for node in ast.walk(source.tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store | ast.Del):
                    yield node, imported(source, part)
    for call, name in source.calls():
        if name in {"setattr", "delattr"} and call.args:
            yield call, imported(source, call.args[0])


def imported(source: Source, node: ast.expr) -> str:
    """The dotted name of an expression that starts with an imported name; '' for anything else."""
    root = node
    while isinstance(root, ast.Attribute):
        root = root.value
    return source.dotted(node) if isinstance(root, ast.Name) and root.id in source.names else ""


def test_no_globals_and_no_global_argument_getters():
    def violations() -> Violations:
        for source in python_sources():
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Global):
                    yield f"{source.at(node)}: global {', '.join(node.names)}"
            for call, name in source.calls():
                if name.rpartition(".")[2] == "get_args" and name != "typing.get_args":
                    yield f"{source.at(call)}: calls {name}"

    none_of(violations())


def test_print_stands_only_in_commands():
    def may_print(source: Source) -> bool:
        return source.is_in(*PRINTING, "tests") or bool(re.fullmatch(r"checkpoint_convert/\w+\.py", source.path))

    none_of(
        f"{source.at(call)}: prints; use megatron_ext.log"
        for source in python_sources()
        if not may_print(source)
        for call, name in source.calls()
        if name == "print"
    )


def test_files_and_functions_keep_their_budgets():
    def violations() -> Violations:
        for source in python_sources():
            lines = len(source.text.splitlines())
            limit = MAX_ENTRY_LINES if source.path == "pretrain_gpt.py" else MAX_FILE_LINES
            if lines > limit:
                yield f"{source.path}: {lines} lines, at most {limit}"
            for node in functions(source):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    yield f"{source.at(node)}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
        for path in tracked_files():
            if path.startswith("csrc/") and len((ROOT / path).read_text().splitlines()) > MAX_FILE_LINES:
                yield f"{path}: more than {MAX_FILE_LINES} lines"

    none_of(violations())


def test_no_file_or_class_is_named_after_nothing():
    def violations() -> Violations:
        for path in tracked_files():
            if {part.partition(".")[0].lower() for part in PurePosixPath(path).parts} & FORBIDDEN_STEMS:
                yield path
        for source in python_sources():
            for node in ast.walk(source.tree):
                if isinstance(node, ast.ClassDef) and node.name.endswith(("Manager", "Helper", "Utils")):
                    yield f"{source.at(node)}: class {node.name}"

    none_of(violations())


def public_definitions(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


def test_public_names_have_docstrings_and_annotations():
    def violations() -> Violations:
        for source in shipped_sources():
            if ast.get_docstring(source.tree) is None and source.text.strip():
                yield f"{source.path}: the module has no docstring"
            for name, node in public_definitions(source.tree.body):
                if ast.get_docstring(node) is None and not is_overload(node):
                    yield f"{source.at(node)}: {name} has no docstring"
                if isinstance(node, ast.ClassDef):
                    continue
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                missing = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
                missing += ["return"] if node.returns is None else []
                if missing:
                    yield f"{source.at(node)}: {name} has no annotation for {', '.join(missing)}"

    none_of(violations())


def is_overload(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(ast.unparse(decorator).endswith(("overload", ".setter")) for decorator in decorators)


def test_every_source_of_megatron_ext_has_a_test_file():
    tests = {path for path in tracked_files() if path.startswith("tests/")}

    def violations() -> Violations:
        for source in shipped_sources():
            if not source.is_in("megatron_ext") or source.path.endswith("__init__.py"):
                continue
            if source.path not in TESTED_ELSEWHERE and not tests & set(mirrors(source.path)):
                yield f"{source.path}: none of {', '.join(mirrors(source.path))}"
        for path, test in TESTED_ELSEWHERE.items():
            if not (ROOT / path).is_file() or not (ROOT / test).is_file():
                yield f"TESTED_ELSEWHERE: {path} -> {test} is out of date"

    none_of(violations())


def mirrors(source_path: str) -> list[str]:
    """Where the test of `megatron_ext/a/b.py` may stand: `tests/{unit,distributed}/a/test_b.py`, `.../test_a.py`."""
    path = PurePosixPath(source_path).relative_to("megatron_ext")
    places = [path.parent / f"test_{path.name}"]
    if path.parent.parts:
        places.append(path.parent.parent / f"test_{path.parent.name}.py")
    return [f"tests/{kind}/{place}" for kind in ("unit", "distributed") for place in places]


def test_unit_tests_mirror_the_folders_of_the_sources():
    folders = {str(PurePosixPath(source.path).parent) for source in shipped_sources()}

    def violations() -> Violations:
        for path in tracked_files():
            if not re.fullmatch(r"tests/unit/.*test_\w+\.py", path) or path in CROSS_CUTTING_TESTS:
                continue
            folder = str(PurePosixPath(path).parent.relative_to("tests/unit"))
            inside = "megatron_ext" if folder == "." else f"megatron_ext/{folder}"
            if inside not in folders and folder not in folders:
                yield f"{path}: no source folder {inside} or {folder}"

    none_of(violations())


TEXT_SUFFIXES = (".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cpp", ".h", ".sh", "Makefile", ".ci/run", ".json")
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/}~-])/(?:home|work|workspace|opt|mnt|srv|Users|tmp)/[\w.-]+")
OUTSIDE_NOTES = re.compile(r"\b(?:DESIGN(?:\.md)?\b(?! of)|(?:shared|reference)/[\w-]+\.md)")


@pytest.mark.parametrize("pattern", [ABSOLUTE_PATH, OUTSIDE_NOTES], ids=["absolute_paths", "notes_outside_the_project"])
def test_no_file_points_outside_the_project(pattern: re.Pattern[str]):
    def violations() -> Violations:
        for path in tracked_files():
            if not path.endswith(TEXT_SUFFIXES) or path == "tests/test_architecture.py":
                continue
            for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
                for match in pattern.finditer(line):
                    yield f"{path}:{number}: {match.group()}"

    none_of(violations())


def test_every_command_guards_its_main():
    """megatron-core's checkpoint writer spawns processes that import the main script again."""
    none_of(
        f"{source.path}: calls run_command outside `if __name__ == '__main__'`"
        for source in shipped_sources()
        for node in source.tree.body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and source.dotted(node.value.func).endswith("run_command")
    )


def test_text_files_have_no_tabs_and_end_with_a_newline():
    none_of(
        path
        for path in tracked_files()
        if path.endswith((".py", ".yaml", ".cpp", ".h", ".md"))
        and (text := (ROOT / path).read_text(encoding="utf-8"))
        and ("\t" in text or not text.endswith("\n"))
    )
