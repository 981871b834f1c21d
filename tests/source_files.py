"""The project's own files, parsed once, for the tests that hold all of them to a rule."""

from __future__ import annotations

import ast
import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Source:
    """One Python file of the project: its path from the root in posix form, its text, its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 0)}"

    def is_in(self, *folders: str) -> bool:
        return any(self.path == folder or self.path.startswith(folder + "/") for folder in folders)

    @functools.cached_property
    def imports(self) -> list[tuple[str, int]]:
        """(dotted module, line) of every import in the file, wherever it stands; relative ones resolved."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(Path(self.path).parts[: -node.level]) if node.level else ""
                module = ".".join(part for part in (base, node.module or "") if part)
                found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
        return found

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """What a name bound by an import stands for: `ps` -> `megatron.core.parallel_state`."""
        bound = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and not node.level:
                bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        return bound

    def dotted(self, node: ast.AST) -> str:
        """`torch.cuda.Stream` for such an expression, its first name replaced by what was imported; else ''."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        return ".".join([self.names.get(node.id, node.id), *reversed(parts)])

    def calls(self) -> list[tuple[ast.Call, str]]:
        """Every call with the dotted name of what is called; for a method of an unnamed value `.method`."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                attribute = f".{node.func.attr}" if isinstance(node.func, ast.Attribute) else ""
                found.append((node, self.dotted(node.func) or attribute))
        return found


@functools.cache
def tracked_files() -> tuple[str, ...]:
    """Paths of the files that belong to the project: known to git or new and not ignored; sorted."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return tuple(sorted(name for name in set(output.split("\0")) if name and (ROOT / name).is_file()))


@functools.cache
def python_sources() -> tuple[Source, ...]:
    """Every Python file of the project."""
    paths = [path for path in tracked_files() if path.endswith(".py")]
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in paths}
    return tuple(Source(path, text, ast.parse(text, path)) for path, text in texts.items())


@functools.cache
def shipped_sources() -> tuple[Source, ...]:
    """Every Python file outside tests/."""
    return tuple(source for source in python_sources() if not source.is_in("tests"))


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a keyword argument, None when the call does not have it."""
    return next((entry.value for entry in call.keywords if entry.arg == name), None)


def is_literal(node: ast.expr | None, value: object) -> bool:
    """Whether the expression is exactly this constant."""
    return isinstance(node, ast.Constant) and node.value is value
