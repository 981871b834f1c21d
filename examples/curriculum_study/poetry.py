"""Turn the unpacked npm package `chinese-poetry` into one JSON-lines corpus: classical Chinese in six kinds of text.

A document is one poem or chapter, its title and then its lines; a long chapter is several documents. They stand in the
order of a hash, so that every part of the file holds all kinds alike; repeats are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What each kind is made of, as patterns below the package's dist/. Authors' biographies and rankings are no texts.
KINDS = {
    "primer": ("mengxue/*.json",),
    "classic": ("lunyu/*.json", "sishuwujing/*.json", "shijing/*.json", "chuci/*.json"),
    "tang": ("quantangshi/poet.tang.*.json",),
    "song": ("quantangshi/poet.song.*.json",),
    "ci": ("songci/ci.song.*.json", "wudaishici/*/poetrys.json", "wudaishici/*/*-juan.json", "nalanxingde/*.json"),
    "qu": ("yuanqu/*.json",),
}
TITLES = ("title", "chapter", "rhythmic")
TEXTS = ("paragraphs", "content", "para")
MIN_CHARACTERS = 20
LONG_DOCUMENT = 400  # characters; a longer chapter is cut at the ends of lines


def main(argv: list[str]) -> int:
    """Write the corpus and say how much of each kind it holds; returns the exit status."""
    args = parse_args(argv)
    dist = args.package / "dist"
    if not dist.is_dir():
        print(f"error: {args.package} is not the unpacked npm package chinese-poetry: no dist/ in it.", file=sys.stderr)
        return 1
    about = json.loads((args.package / "package.json").read_text(encoding="utf-8"))
    print(f"{about['name']} {about['version']}, licence {about['license']}")
    documents: dict[str, tuple[str, str]] = {}
    for kind in KINDS:
        chosen = bounded(texts_of_kind(dist, kind), args.max_characters)
        documents |= {key: (kind, text) for key, text in chosen.items() if key not in documents}
        print(f"{kind}: {len(chosen):,} documents, {sum(map(len, chosen.values())):,} characters")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(args.output.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        for _, (kind, text) in sorted(documents.items(), key=lambda item: hashed("order " + item[1][1])):
            stream.write(json.dumps({"text": text, "source": kind}, ensure_ascii=False) + "\n")
    partial.replace(args.output)
    print(f"corpus: {args.output}, {len(documents):,} documents")
    return 0


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(
        prog="examples/curriculum_study/poetry.py", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--package", required=True, type=Path, metavar="DIR", help="folder of the unpacked package")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the corpus to write, .jsonl")
    parser.add_argument(
        "--max-characters", type=int, default=350_000, help="most characters of a kind (default: 350000)"
    )
    return parser.parse_args(argv)


def texts_of_kind(dist: Path, kind: str) -> Iterator[str]:
    """The documents of one kind, in the order of file names."""
    for pattern in KINDS[kind]:
        for path in sorted(dist.glob(pattern)):
            yield from documents_in(json.loads(path.read_text(encoding="utf-8")))


def documents_in(node: Any, heading: str = "") -> Iterator[str]:
    """Every list of lines in a tree of JSON is a document, below the title nearest to it."""
    if isinstance(node, list):
        for child in node:
            yield from documents_in(child, heading)
    if not isinstance(node, dict):
        return
    heading = next((node[key] for key in TITLES if isinstance(node.get(key), str)), heading)
    for child in (node.get(key) for key in TEXTS):
        if isinstance(child, list) and child and all(isinstance(line, str) for line in child):
            yield from pieces([line.strip() for line in (heading, *child) if line.strip()])
        else:
            yield from documents_in(child, heading)


def pieces(lines: list[str]) -> Iterator[str]:
    """The lines as one text, or as several of about LONG_DOCUMENT characters."""
    taken: list[str] = []
    for line in lines:
        if taken and sum(map(len, taken)) + len(line) > LONG_DOCUMENT:
            yield "\n".join(taken)
            taken = []
        taken.append(line)
    if taken:
        yield "\n".join(taken)


def bounded(texts: Iterator[str], max_characters: int) -> dict[str, str]:
    """Documents by the hash of their text, the first in that order, until they hold max_characters."""
    by_hash = {hashed(text): text for text in texts if len(text) >= MIN_CHARACTERS}
    chosen: dict[str, str] = {}
    characters = 0
    for key, text in sorted(by_hash.items()):
        if characters >= max_characters:
            break
        chosen[key] = text
        characters += len(text)
    return chosen


def hashed(text: str) -> str:
    """A shuffle that is the same on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
