"""Configuration files: YAML read strictly, with the line of every value, and nothing executed (law L9)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_ext.errors import ConfigError

_CORE_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")}


@dataclass(frozen=True)
class Entry:
    """One value of a configuration file as it was typed.

    Args:
        section: name of the section it stands in.
        key: name of the setting.
        text: the scalar's text, a list of texts, or None for null.
        place: `FILE:LINE`.
    """

    section: str
    key: str
    text: str | list[str] | None
    place: str


def read_entries(path: str) -> list[Entry]:
    """All values of one file, in the order written.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or a shape other than section -> setting -> value.
    """
    entries: list[Entry] = []
    root = _compose(path)
    if root is None or _is_null(root):
        return entries
    for section_node, body in _pairs(root, path, "sections (model:, parallel:, ...)"):
        if _is_null(body):
            continue
        for key_node, value in _pairs(body, path, f"settings of {section_node.value}"):
            place = f"{path}:{key_node.start_mark.line + 1}"
            entries.append(Entry(section_node.value, key_node.value, _text(value, place, key_node.value), place))
    return entries


def _compose(path: str) -> yaml.Node | None:
    try:
        text = Path(path).read_text(encoding="utf-8")
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        return node
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def _pairs(node: yaml.Node, path: str, what: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected a mapping of {what}")
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}:{line}: a key is not a word; expected a mapping of {what}")
        if key.value in seen:
            raise ConfigError(f"{path}:{line}: {key.value} is already given in line {seen[key.value]} of this file")
        seen[key.value] = line
    return list(node.value)


def _text(node: yaml.Node, place: str, key: str) -> str | list[str] | None:
    if _is_null(node):
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_scalar(item, place, key) for item in node.value]
    return _scalar(node, place, key)


def _scalar(node: yaml.Node, place: str, key: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _CORE_TAGS:
        raise ConfigError(f"{place}: {key} is not a plain value or a list of plain values")
    return str(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
