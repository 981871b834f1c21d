"""A step is the mean-loss gradient of the global batch, clipped, given to the update rule; however it is cut."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_ext.config import RunConfig
from megatron_ext.data.loader import LoaderConfig, to_batch
from megatron_ext.model.gpt import build_model
from megatron_ext.parallel.grid import Coordinates, Grid
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.schedule import Schedule, learning_rate, schedule_settings, weight_decay
from megatron_ext.training.step import forward_backward, parameters_norm, seed_step, sum_reports, train_step
from tests.unit.tiny import TOKENIZER, VOCAB_SIZE, TokenView, tiny_components, tiny_run


def train(parts: Components, steps: int, state: TrainState | None = None) -> list[StepResult]:
    state, results = state or TrainState(), []
    run, first = parts.run, state.consumed_samples
    batch_size, length = run.global_batch_size_at, run.seq_length_at
    with open_readers(parts, parts.datasets.train, first, batch_size, seq_length=length) as readers:
        for _ in range(steps):
            results.append(train_step(parts, state, readers))
            state.advance(results[-1])
    return results


def curve(run: RunConfig, world: World, view: TokenView, steps: int = 4) -> list[StepResult]:
    return train(tiny_components(run, world, train=view), steps)


def plain_loader(run: RunConfig) -> LoaderConfig:
    data = run.data
    return LoaderConfig(
        1, eod_id=TOKENIZER.eod_id, eod_mask_loss=data.eod_mask_loss, reset_position_ids=data.reset_position_ids,
        document_starts=data.reset_attention_mask,
    )  # fmt: skip


def plain_torch_steps(run: RunConfig, view: TokenView, steps: int) -> tuple[torch.nn.Module, list[float], list[float]]:
    """The same training without gradient buffers, schedules of megatron-core, or our optimizer."""
    [model] = build_model(run, VOCAB_SIZE, "cpu")
    vectors = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors}],
        lr=1.0, betas=(run.optim.adam_beta1, run.optim.adam_beta2), eps=run.optim.adam_eps,
    )  # fmt: skip
    schedule = Schedule.from_settings(schedule_settings(run))
    losses, norms = [], []
    for step in range(steps):
        consumed = step * run.global_batch_size
        rows = torch.stack([torch.from_numpy(view[i]) for i in view.sample_ids(consumed, run.global_batch_size)])
        length = run.seq_length_at(consumed)
        rows = torch.cat([rows[:, begin : begin + length + 1] for begin in range(0, 16, length)])
        batch = to_batch(rows, plain_loader(run))
        out = model(batch["tokens"], batch["position_ids"], batch.get("document_starts"), labels=batch["labels"])
        loss = (out * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), run.optim.clip_grad).item())
        for group, decays in zip(optimizer.param_groups, (1.0, 0.0), strict=True):
            group["lr"] = learning_rate(schedule, consumed)
            group["weight_decay"] = decays * weight_decay(schedule, consumed)
        optimizer.step()
    return model, losses, norms


@pytest.mark.parametrize("architecture", ["llama", "megatron_default"])
def test_training_is_plain_torchs(architecture: str, world: World):
    schedule = {"lr_decay_style": "cosine", "min_lr": 1e-4, "lr_warmup_iters": 2, "lr": 5e-3}
    run = tiny_run(architecture, eod_mask_loss=True, weight_decay=0.2, clip_grad=0.7, **schedule)
    view = TokenView(eod_share=0.04)
    parts = tiny_components(run, world, train=view)
    results = train(parts, 6)
    expected, losses, norms = plain_torch_steps(run, view, 6)
    assert [r.lm_loss for r in results] == pytest.approx(losses, rel=1e-5)
    assert [r.grad_norm for r in results] == pytest.approx(norms, rel=1e-4)
    for ours, theirs in zip(parts.models[0].parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


WARM_UP = ("4:100", "8:64")
"""Of steps of 64 tokens the first two have sequences of 4, the next of 8, then those of 16."""


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("llama", {}),
        ("alibi", {}),
        ("megatron_default", {"reset_position_ids": True}),
        ("grouped_queries", {"reset_attention_mask": True, "reset_position_ids": True, "micro_batch_size": 1}),
        ("llama", {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}),
    ],
)
def test_short_sequences_train_as_if_they_were_the_samples(architecture: str, values: dict, world: World):
    """The same tokens, each predicted from its own short sequence alone, and the mean over the whole global batch."""
    run = tiny_run(architecture, eod_mask_loss=True, lr=1e-3, seq_length_warmup=WARM_UP, **values)
    view = TokenView(eod_share=0.04)
    results = train(tiny_components(run, world, train=view), 5)
    assert [result.seq_length for result in results] == [4, 4, 8, 16, 16]
    assert {(result.global_batch_size, result.num_tokens) for result in results} == {(4, 64)}
    assert view.seen == [sample % 12 for sample in range(20)]
    _, losses, norms = plain_torch_steps(run, view, 5)
    assert [r.lm_loss for r in results] == pytest.approx(losses, rel=1e-5)
    assert [r.grad_norm for r in results] == pytest.approx(norms, rel=1e-4)
    whole = curve(run.with_values(seq_length_warmup=None), world, view, 1)
    assert whole[0].lm_loss != pytest.approx(results[0].lm_loss, rel=1e-5)
    assert whole[0].seq_length is None


def test_a_run_resumed_in_its_warm_up_goes_on_as_the_whole_one(world: World):
    """From nothing but the number of consumed samples; next to no rate, so that the weights are the same."""
    run = tiny_run(seq_length_warmup=WARM_UP, lr=1e-30)
    whole = [(r.lm_loss, r.grad_norm, r.seq_length) for r in train(tiny_components(run, world), 5)]
    for step in range(1, 5):
        rest = train(tiny_components(run, world), 5 - step, TrainState(step, 4 * step))
        assert [(r.lm_loss, r.grad_norm, r.seq_length) for r in rest] == whole[step:]


def test_the_cut_into_micro_batches_does_not_matter(world: World):
    """Also where the micro-batches count very different numbers of tokens."""
    view = TokenView(eod_share=0.08)
    curves = []
    for size in (1, 2, 4):
        results = curve(tiny_run(micro_batch_size=size, eod_mask_loss=True), world, view)
        curves.append([(r.lm_loss, r.grad_norm) for r in results])
    for other in curves[1:]:
        for (loss, norm), (expected_loss, expected_norm) in zip(other, curves[0], strict=True):
            assert loss == pytest.approx(expected_loss, rel=1e-5) and norm == pytest.approx(expected_norm, rel=1e-4)


def test_masked_tokens_do_not_count(world: World):
    view = TokenView(eod_share=0.08)
    masked, unmasked = (curve(tiny_run(eod_mask_loss=mask), world, view, 1)[0].lm_loss for mask in (True, False))
    assert masked != pytest.approx(unmasked, rel=1e-5)


class MaskedView(TokenView):
    """Random codes of a loss mask; samples whose number is in `silent` have nothing to learn."""

    has_loss_mask = True

    def __init__(self, silent: tuple[int, ...] = (), **settings: float) -> None:
        super().__init__(**settings)
        self.codes = np.random.default_rng(5).integers(0, 3, self.tokens.shape).astype(np.uint8)
        self.codes[list(silent)] = 0

    def loss_mask(self, sample_id: int) -> np.ndarray:
        return self.codes[sample_id]


@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.parametrize("eod_mask_loss", [False, True])
@pytest.mark.parametrize("silent", [(), (1,), (0, 1)], ids=["all learn", "one silent", "two silent"])
def test_the_loss_is_the_mean_over_the_learned_positions(
    silent: tuple[int, ...], eod_mask_loss: bool, micro_batch_size: int, world: World
):
    """By hand, token by token; a micro-batch without any learned token weighs nothing and makes no NaN."""
    view = MaskedView(silent, eod_share=0.05)
    run = tiny_run(eod_mask_loss=eod_mask_loss, micro_batch_size=micro_batch_size, lr=1e-30)
    parts = tiny_components(run, world, train=view)
    logits = parts.models[0](torch.from_numpy(view.tokens[:4, :-1]), torch.arange(16).expand(4, 16), None)
    logits = logits.double()[..., :VOCAB_SIZE]
    losses = []
    for sample in range(4):
        for j in range(16):
            code, label = view.codes[sample, j + 1], view.tokens[sample, j + 1]
            if code and not (eod_mask_loss and view.tokens[sample, j] == TOKENIZER.eod_id):
                losses.append(-logits[sample, j].log_softmax(-1)[TOKENIZER.eod_id if code == 2 else label].item())
    [result] = train(parts, 1)
    assert 0 < len(losses) < 64
    assert result.lm_loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert math.isfinite(result.grad_norm) and not result.skipped


def test_a_batch_without_any_learned_token_changes_nothing_and_is_told(world: World, capsys):
    """Not even through Adam's momentum or weight decay."""
    parts = tiny_components(tiny_run(weight_decay=0.5), world, train=MaskedView((4, 5, 6, 7)))
    state = TrainState()
    train(parts, 1, state)
    before = [parameter.detach().clone() for parameter in parts.models[0].parameters()]
    [silent] = train(parts, 1, state)
    assert (silent.lm_loss, silent.skipped, silent.grad_norm) == (0.0, True, None)
    assert all(parameter.equal(old) for parameter, old in zip(parts.models[0].parameters(), before, strict=True))
    assert "iteration 2 has no learned token in its 4 samples" in capsys.readouterr().err
    assert (state.skipped_iterations, state.nan_iterations, state.schedule_step) == (1, 0, 4)
    [after] = train(parts, 1, state)
    assert math.isfinite(after.lm_loss) and not after.skipped
    assert not any(parameter.equal(old) for parameter, old in zip(parts.models[0].parameters(), before, strict=True))


def test_isolated_documents_are_trained_apart(world: World):
    view = TokenView(eod_share=0.08)
    curves = {}
    for values in (
        (),
        ("reset_attention_mask",),
        ("reset_position_ids",),
        ("reset_attention_mask", "reset_position_ids"),
    ):
        run = tiny_run(**dict.fromkeys(values, True))
        curves[values] = [result.lm_loss for result in curve(run, world, view, 3)]
    plain, isolated, restarted, both = curves.values()
    assert isolated == both, "RoPE is relative: isolated documents need no new positions"
    assert len({tuple(plain), tuple(isolated), tuple(restarted)}) == 3


def test_the_result_tells_what_the_step_was(world: World):
    run = tiny_run(lr_decay_style="linear", lr=0.1, train_iters=10)
    parts = tiny_components(run, world)
    state = TrainState(iteration=5, consumed_samples=20)
    [result] = train(parts, 1, state)
    assert (result.global_batch_size, result.num_tokens, result.skipped) == (4, 64, False)
    assert result.learning_rate == pytest.approx(0.05)
    assert {group["lr"] for group in parts.optimizer.param_groups} == {result.learning_rate}
    assert result.seconds > 0 and result.grad_norm > 0
    assert (result.loss_scale, result.params_norm, result.num_zeros) == (None, None, None)
    assert state.consumed_samples == 24


def test_a_step_leaves_the_state_to_its_caller(world: World):
    parts = tiny_components(tiny_run(), world)
    state = TrainState(3, 12)
    with open_readers(parts, parts.datasets.train, 12, parts.run.global_batch_size_at) as readers:
        train_step(parts, state, readers)
    assert state == TrainState(3, 12)


def test_the_batch_follows_the_ramp_up(world: World):
    run = tiny_run(rampup_batch_size=(2, 2, 8), global_batch_size=4)
    view = TokenView()
    results = curve(run, world, view, 6)
    sizes = [result.global_batch_size for result in results]
    assert (sizes[0], sizes[-1]) == (2, 4) and sizes == sorted(sizes)
    assert view.seen[: sum(sizes)] == [i % 12 for i in range(sum(sizes))]


def test_gradients_of_one_step_do_not_leak_into_the_next(world: World):
    """With next to no rate the same batch has the same gradient twice."""
    run = tiny_run(lr=1e-30, global_batch_size=4)
    view = TokenView(samples=4)
    norms = [result.grad_norm for result in curve(run, world, view, 3)]
    assert norms[0] > 0 and norms == [norms[0]] * 3


class TestDropout:
    run = tiny_run(hidden_dropout=0.2, attention_dropout=0.2, lr=1e-30, global_batch_size=4)

    def losses(self, world: World, seed: int, start: int, steps: int) -> list[float]:
        parts = tiny_components(self.run.with_values(seed=seed), world, train=TokenView(samples=4))
        torch.manual_seed(torch.seed())  # what came before must not matter
        return [r.lm_loss for r in train(parts, steps, TrainState(start, 4 * start))]

    def test_a_resumed_run_drops_what_the_whole_one_drops(self, world: World):
        whole = self.losses(world, 1, 0, 5)
        assert self.losses(world, 1, 3, 2) == whole[3:]

    def test_every_iteration_drops_something_else(self, world: World):
        assert len(set(self.losses(world, 1, 0, 5))) == 5

    def test_evaluation_in_between_changes_nothing(self, world: World):
        whole = self.losses(world, 1, 0, 3)
        parts = tiny_components(self.run.with_values(seed=1), world, train=TokenView(samples=4))
        state = TrainState()
        with open_readers(parts, parts.datasets.train, 0, parts.run.global_batch_size_at) as readers:
            for expected in whole:
                with open_readers(parts, TokenView(5), 0, parts.run.global_batch_size_at) as others, torch.no_grad():
                    forward_backward(parts, others, 4, forward_only=True)
                result = train_step(parts, state, readers)
                state.advance(result)
                assert result.lm_loss == expected


def draws(at: Coordinates, seed: int, iteration: int) -> tuple[float, float]:
    """One number from the generator shared by a tensor-parallel group, one from the rank's own."""
    from megatron.core import tensor_parallel

    seed_step(SimpleNamespace(at=at, grid=Grid(4, 2, 4, cp_size=2)), seed, iteration)
    shared = torch.rand(()).item()
    with tensor_parallel.get_cuda_rng_tracker().fork():
        return shared, torch.rand(()).item()


def test_the_seed_of_a_step_is_a_function_of_seed_iteration_and_place(world: World):
    def place(pp: int = 0, dp: int = 0, cp: int = 0) -> Coordinates:
        return Coordinates(tp_rank=0, cp_rank=cp, dp_rank=dp, pp_rank=pp)

    base = draws(place(), 1234, 7)
    assert draws(place(), 1234, 7) == base
    others = [
        draws(place(), 1235, 7), draws(place(), 1234, 8), draws(place(dp=1), 1234, 7), draws(place(pp=1), 1234, 7),
        draws(place(cp=1), 1234, 7),
    ]  # fmt: skip
    assert len({number for pair in (base, *others) for number in pair}) == 12


def test_no_rank_drops_what_another_one_drops(world: World, monkeypatch: pytest.MonkeyPatch):
    """Every rank has its own tensor-parallel generator, also (dp 0, tp 1) and (dp 1, tp 0), (dp 1, cp 0) and others."""
    own = set()
    for tp in range(4):
        monkeypatch.setattr("megatron.core.parallel_state._MPU_TENSOR_MODEL_PARALLEL_RANK", tp)
        for pp in range(2):
            for dp, cp in itertools.product(range(4), range(2)):
                own.add(draws(Coordinates(tp_rank=tp, cp_rank=cp, dp_rank=dp, pp_rank=pp), 1, 1)[1])
    assert len(own) == 4 * 2 * 4 * 2


def test_no_two_places_or_iterations_share_a_seed(world: World, monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []
    grid = Grid(tp_size=1, pp_size=4, dp_size=8, cp_size=2)
    monkeypatch.setattr("torch.manual_seed", seeds.append)
    monkeypatch.setattr("megatron.core.tensor_parallel.model_parallel_cuda_manual_seed", lambda _: None)
    for iteration in range(50):
        for pp in range(4):
            for dp, cp in itertools.product(range(8), range(2)):
                at = Coordinates(tp_rank=0, cp_rank=cp, dp_rank=dp, pp_rank=pp)
                seed_step(SimpleNamespace(at=at, grid=grid), 1234, iteration)
    assert len(set(seeds)) == len(seeds) == 50 * 4 * 16
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_losses_and_tokens_of_all_micro_batches_are_summed(world: World):
    reports = [{"loss and tokens": torch.tensor(pair)} for pair in ([4.0, 1.0], [9.0, 2.0])]
    assert sum_reports(reports, world) == (13.0, 3.0, None, 0.0)
    assert sum_reports([], world) == (0.0, 0.0, None, 0.0)


def test_forward_only_leaves_gradients_and_weights(world: World):
    parts = tiny_components(tiny_run(), world)
    before = [parameter.detach().clone() for parameter in parts.models[0].parameters()]
    for chunk in parts.chunks:
        chunk.zero_grad_buffer()
    with open_readers(parts, TokenView(), 0, parts.run.global_batch_size_at) as readers, torch.no_grad():
        forward_backward(parts, readers, 4, forward_only=True)
    for parameter, old in zip(parts.models[0].parameters(), before, strict=True):
        assert parameter.equal(old) and parameter.main_grad.count_nonzero() == 0


@pytest.mark.parametrize("architecture", ["llama", "megatron_default"])
def test_norm_of_the_parameters(architecture: str, world: World):
    parts = tiny_components(tiny_run(architecture, log_params_norm=True), world)
    [result] = train(parts, 1)
    flat = torch.cat([parameter.detach().double().flatten() for parameter in parts.models[0].parameters()])
    assert result.params_norm == parameters_norm(parts) == pytest.approx(flat.norm().item(), rel=1e-12)


def test_number_of_zeros_in_the_gradient(world: World):
    parts = tiny_components(tiny_run(log_num_zeros_in_grad=True), world)
    [result] = train(parts, 1)
    expected = sum(int((parameter.main_grad == 0).sum()) for parameter in parts.models[0].parameters())
    assert result.num_zeros == expected >= 28 * 32 * 2, "at least the padded rows of both vocabularies"


def test_the_loss_falls(world: World):
    results = curve(tiny_run(), world, TokenView(samples=4), 30)
    assert results[-1].lm_loss < 0.3 * results[0].lm_loss
