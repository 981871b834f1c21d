"""The report says what the files say: means, spread, paired differences and tokens needed, checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.curriculum_study import report
from examples.curriculum_study.report import Curve

TOKENS = (100, 200, 300, 400)


def curve(*losses: float) -> Curve:
    return Curve(TOKENS, losses)


def write_run(study: Path, name: str, losses: list[float], seq_length: int = 10) -> None:
    folder = study / "runs" / name
    folder.mkdir(parents=True)
    lines = [{"iteration": n, "consumed_samples": 10 * n, "lm_loss": loss} for n, loss in enumerate(losses, 1)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    samples = 10 * len(losses)
    last = {"consumed_samples": samples, "consumed_tokens": samples * seq_length}
    (folder / "metrics.jsonl").write_text(json.dumps(last) + "\n", encoding="utf-8")


def test_tokens_needed_are_linear_between_evaluations():
    falling = curve(6.0, 5.0, 4.5, 4.0)
    assert falling.first_at(5.5) == pytest.approx(150)
    assert falling.first_at(4.0) == pytest.approx(400)
    assert falling.first_at(7.0) == 100
    assert falling.first_at(3.9) is None
    assert falling.at(250) == pytest.approx(4.75)
    assert falling.at(400) == pytest.approx(4.0)


def test_the_first_time_counts_when_the_loss_rises_again():
    assert curve(6.0, 4.0, 5.0, 3.0).first_at(4.5) == pytest.approx(175)


def test_differences_are_taken_between_runs_of_the_same_seed():
    curves = {
        ("constant", "shuffled"): {1: curve(6, 5, 4, 3.0), 2: curve(6, 5, 4, 3.5)},
        ("constant", "sorted"): {1: curve(6, 5, 4, 2.9), 2: curve(6, 5, 4, 3.3), 3: curve(6, 5, 4, 9.0)},
    }
    cells = [cell.strip() for cell in report.row(curves, "constant", "sorted").split("|")]
    assert cells[6] == "-0.1500 (-0.2000 to -0.1000)"
    assert cells[7] == "+0.0000 (+0.0000 to +0.0000)"
    assert cells[9] == "not reached in 2 of 2"
    assert cells[8] == "95 %"  # of 400 tokens: 390.9 and 371.4, where the lines from 4 to 2.9 and 3.3 pass 3.0 and 3.5


def test_an_order_that_never_gets_there_is_said_so():
    curves = {
        ("cosine", "shuffled"): {1: curve(6, 5, 4, 3), 2: curve(6, 5, 4, 3)},
        ("cosine", "paced"): {1: curve(6, 5, 4, 3.2), 2: curve(6, 5, 3, 3)},
    }
    cells = [cell.strip() for cell in report.row(curves, "cosine", "paced").split("|")]
    assert cells[8:10] == ["75 % not reached in 1 of 2", "98 %"]  # 395 (4 to 3, at 3.2 after 380) and 400 of 400


@pytest.mark.parametrize(
    ("finals", "words"),
    [
        ((2.0, 2.1), "lower than shuffled, beyond"),
        ((4.0, 4.1), "higher than shuffled, beyond"),
        ((2.95, 3.05), "not told apart"),  # both lower, by less than the seeds differ
        ((2.0, 4.0), "not told apart"),
        ((2.0,), "one seed"),
    ],
)
def test_a_difference_counts_only_beyond_the_spread_of_the_seeds(finals: tuple[float, ...], words: str):
    curves = {
        ("constant", "shuffled"): {1: curve(6, 5, 4, 3.0), 2: curve(6, 5, 4, 3.1)},
        ("constant", "sorted"): {seed: curve(6, 5, 4, final) for seed, final in enumerate(finals, 1)},
    }
    (line,) = report.verdicts(curves)
    assert words in line


def test_the_effect_of_decay_is_taken_within_order_and_seed():
    finals = {("constant", "sorted"): (4.0, 4.2), ("cosine", "sorted"): (3.5, 3.9), ("constant", "paced"): (3.0, 3.0)}
    curves = {key: {seed: curve(6, 5, 5, loss) for seed, loss in enumerate(ends)} for key, ends in finals.items()}
    assert list(report.effect_of_decay(curves))[-1] == "| sorted | -0.4000 (-0.5000 to -0.3000) |"
    assert list(report.effect_of_decay({key: runs for key, runs in curves.items() if key[0] == "constant"})) == []


def test_a_study_folder_becomes_a_report_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed in (1, 2):
        for schedule in ("constant", "cosine"):
            write_run(tmp_path, f"seed-{seed}/{schedule}/shuffled", [6.0, 5.0, 4.0 + seed / 10])
            write_run(tmp_path, f"seed-{seed}/{schedule}/sorted", [6.0, 5.5, 4.5 + seed / 10])
    write_run(tmp_path, "seed-3/cosine/sorted", [6.0, 5.5])
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "scores.log").write_text("metric mean\nrarity  6.861  5.7\n", encoding="utf-8")
    assert report.main(["--study", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "300 tokens" in text and "6.86 nats" in text
    assert "| cosine | sorted | 2 | 4.6500 | 0.0707 | +0.5000 (+0.5000 to +0.5000) |" in text
    assert "left out: seed-3/cosine/sorted." in text
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "8 runs" in capsys.readouterr().out


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert report.main(["--study", str(tmp_path)]) == 1
    assert "no finished run" in capsys.readouterr().err
