"""Weights follow losses by a pure function; what was decided holds from its place on, in every life of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.config import RunConfig
from megatron_ext.data.blend import BlendView
from megatron_ext.data.greedy_mixture import GreedyMixture
from megatron_ext.errors import DataError
from megatron_ext.parallel.world import World
from megatron_ext.training.blend_policy import Policy, apply_decisions, check_policy, has_weights, next_weights
from megatron_ext.training.source_losses import Decision
from tests.unit.tiny import TokenView
from tests.unit.training.blends import easy_and_hard, records_of, run_blend

HALF = np.array([0.5, 0.5])
PLAIN = Policy(rate=1.0, floor=0.0)
LOSSES = st.floats(0.0, 12.0)
SHARES = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6)


def test_it_is_the_published_formula():
    """Sheared LLaMA, algorithm 1: weights grow with exp of the loss above the reference, and are made a whole again."""
    weights, losses, references = np.array([0.5, 0.3, 0.2]), [3.0, 2.5, 1.0], (2.0, 2.4, 1.5)
    grown = weights * np.exp([1.0, 0.1, 0.0])
    found = next_weights(weights, weights, losses, Policy(1.0, 0.0, references))
    assert found == pytest.approx(grown / grown.sum(), rel=1e-5)


def test_without_references_a_loss_is_compared_with_the_mean():
    """The mean is a factor of all weights, so it does not show: w' is w exp(rate loss), made a whole."""
    weights, losses = np.array([0.7, 0.3]), [2.0, 4.0]
    grown = weights * np.exp(0.5 * np.array(losses))
    assert next_weights(weights, weights, losses, Policy(0.5, 0.0)) == pytest.approx(grown / grown.sum(), rel=1e-5)


def test_a_part_of_the_first_weights_is_mixed_in():
    """DoReMi, algorithm 1, with the first weights in place of even ones."""
    weights, first = np.array([0.7, 0.3]), np.array([0.2, 0.8])
    plain = next_weights(weights, first, [2.0, 4.0], PLAIN)
    mixed = next_weights(weights, first, [2.0, 4.0], Policy(1.0, 0.25))
    assert mixed == pytest.approx(0.75 * np.array(plain) + 0.25 * first, rel=1e-5)


@given(SHARES, st.data())
def test_harder_sources_gain_and_none_dies(shares: list[float], data: st.DataObject):
    weights = np.array(shares) / sum(shares)
    losses = data.draw(st.lists(LOSSES, min_size=len(shares), max_size=len(shares)))
    policy = Policy(data.draw(st.floats(0.1, 3.0)), 0.1)
    found = np.array(next_weights(weights, weights, losses, policy))
    assert found.sum() == pytest.approx(1.0, abs=1e-5) and (found >= 0.0999 * weights).all()
    gains = found / weights
    hardest, easiest = int(np.argmax(losses)), int(np.argmin(losses))
    assert gains[hardest] >= 0.9999 and gains[easiest] <= 1.0001
    if losses[hardest] - losses[easiest] > 0.1:
        assert gains[hardest] > gains[easiest]


def test_again_and_again_the_floor_holds():
    weights = first = np.array([0.5, 0.5])
    for _ in range(200):
        weights = np.array(next_weights(weights, first, [1.0, 9.0], Policy(2.0, 0.1)))
        weights /= weights.sum()
    assert weights == pytest.approx([0.05, 0.95], abs=1e-4)


def test_a_source_that_was_not_seen_keeps_its_share():
    weights = np.array([0.2, 0.3, 0.5])
    found = next_weights(weights, weights, [None, 3.0, 1.0], PLAIN)
    assert found[0] == pytest.approx(0.2) and sum(found[1:]) == pytest.approx(0.8) and found[1] > 0.3
    assert next_weights(weights, weights, [None] * 3, PLAIN) == pytest.approx(weights)


def test_a_weight_of_zero_stays():
    weights = np.array([0.0, 1.0, 0.0])
    for losses in ([5.0, 1.0, None], [None, None, None]):
        assert next_weights(weights, weights, losses, Policy(1.0, 0.1)) == (0.0, 1.0, 0.0)


def test_a_loss_below_its_reference_is_no_loss():
    assert next_weights(HALF, HALF, [1.0, 2.0], Policy(1.0, 0.0, (3.0, 3.0))) == (0.5, 0.5)


def test_any_loss_and_rate_give_weights():
    for losses in ([0.0, 1e6], [1e6, 1e6], [1e300, 0.0]):
        found = next_weights(HALF, HALF, losses, Policy(1000.0, 0.1))
        assert sum(found) == pytest.approx(1.0, abs=1e-5) and min(found) >= 0.05


@given(st.floats(0.002, 0.008), st.floats(-1e-4, 1e-4))
def test_what_a_layout_changes_in_a_loss_changes_no_weight(inside: float, difference: float):
    """Away from the edge between two multiples of 0.01."""
    losses = [2.50 + inside - 0.005, 3.10]
    found = [next_weights(HALF, HALF, [loss, 3.10], PLAIN) for loss in (losses[0], losses[0] + difference)]
    assert found[0] == found[1]


# what it works on ------------------------------------------------------------------------------------------------


def data_of(**values: object):
    return RunConfig().with_values(blend_reweight_interval=5, **values).data


def test_a_policy_needs_weights_and_as_many_references_as_datasets():
    view = easy_and_hard()
    check_policy(data_of(), view)
    check_policy(data_of(blend_reference_losses=("1", "2")), view)
    check_policy(RunConfig().data, TokenView())
    with pytest.raises(DataError, match=r"gives 3 losses.*has 2 datasets"):
        check_policy(data_of(blend_reference_losses=("1", "2", "3")), view)
    for without in (TokenView(), BlendView([TokenView(), TokenView()], GreedyMixture(HALF))):
        assert not has_weights(without)
        with pytest.raises(DataError, match=r"has none.*WEIGHT PREFIX"):
            check_policy(data_of(), without)


def test_decisions_hold_from_their_places_on():
    view, decisions = easy_and_hard(), [Decision(2, 8, (1.0, 0.0), (1.0, 1.0)), Decision(4, 16, (0.0, 1.0), (1.0, 1.0))]
    before = view.sample_ids(0, 8).tolist()
    assert apply_decisions(view, decisions)
    assert view.sample_ids(0, 8).tolist() == before
    assert set(view.sources_of(view.sample_ids(8, 8))) == {0} and set(view.sources_of(view.sample_ids(16, 40))) == {1}
    assert apply_decisions(TokenView(), [])
    for other in (TokenView(), BlendView([TokenView(), TokenView()], GreedyMixture(HALF)), None):
        assert not apply_decisions(other, decisions)
    assert not apply_decisions(view, [Decision(6, 32, (0.2, 0.3, 0.5), (1.0,) * 3)])


# in a run --------------------------------------------------------------------------------------------------------


def test_in_a_run_the_harder_source_is_seen_more(world: World, tmp_path: Path):
    state = run_blend(world, tmp_path, train_iters=24, num_workers=0)
    weights = [decision.weights[1] for decision in state.sources.decisions]
    assert [decision.consumed_samples for decision in state.sources.decisions] == [12 * k for k in range(1, 9)]
    assert 0.5 < weights[0] < 0.7 < weights[-1]
    shares = [record["sources"][1]["share"] for record in records_of(tmp_path)["sources.jsonl"]]
    assert shares[-1] > 0.6 and shares[0] < shares[-1]


def test_no_decision_depends_on_how_far_workers_read_ahead(world: World, tmp_path: Path):
    for workers in (0, 2):
        run_blend(world, tmp_path / str(workers), num_workers=workers)
    alone, ahead = (records_of(tmp_path / str(workers)) for workers in (0, 2))
    assert alone == ahead
    view = easy_and_hard()
    apply_decisions(view, [Decision.from_record(record) for record in ahead["blend_weights.jsonl"]])
    read = [sample for record in ahead["ids.jsonl"] for sample in record["sample_ids"]]
    assert read == view.sample_ids(0, 48).tolist() != easy_and_hard().sample_ids(0, 48).tolist()


@pytest.mark.parametrize("stops", [(2, 7), (3, 6), (8,)], ids=["inside intervals", "at decisions", "at a report"])
def test_a_stopped_and_resumed_run_is_the_whole_one(stops: tuple[int, ...], world: World, tmp_path: Path):
    whole = run_blend(world, tmp_path / "whole")
    for stop in stops:
        run_blend(world, tmp_path / "parts", exit_interval=stop)
    assert run_blend(world, tmp_path / "parts") == whole
    assert records_of(tmp_path / "parts") == records_of(tmp_path / "whole")
    assert [len(records) for records in records_of(tmp_path / "whole").values()] == [12, 3, 4, 12]


def test_a_resume_under_another_policy_keeps_what_was_decided(world: World, tmp_path: Path):
    run_blend(world, tmp_path, train_iters=24, exit_interval=6)
    before = records_of(tmp_path)["blend_weights.jsonl"]
    state = run_blend(world, tmp_path, train_iters=24, exit_interval=12, blend_reweight_interval=None)
    assert records_of(tmp_path)["blend_weights.jsonl"] == before and len(state.sources.decisions) == 2
    state = run_blend(world, tmp_path, train_iters=24, exit_interval=16, blend_reweight_interval=4)
    assert [decision.iteration for decision in state.sources.decisions] == [3, 6, 16]
    since_it_is_on = records_of(tmp_path)["sources.jsonl"][-1]
    assert since_it_is_on["iteration"] == 16, "of iterations 13 to 16, as the decision"
    assert list(state.sources.decisions[-1].losses) == [source["loss"] for source in since_it_is_on["sources"]]
    assert records_of(tmp_path)["blend_weights.jsonl"][:2] == before


def test_a_run_that_branches_off_tells_earlier_decisions_in_its_own_folder(world: World, tmp_path: Path):
    run_blend(world, tmp_path / "trunk", exit_interval=6)
    run_blend(world, tmp_path / "branch", load=str(tmp_path / "trunk"))
    run_blend(world, tmp_path / "trunk")
    trunk, branch = (records_of(tmp_path / name)["blend_weights.jsonl"] for name in ("trunk", "branch"))
    assert trunk == branch and len(branch) == 4
