"""Our BaichuanForCausalLM behaves as transformers expects: cache, padding, generation, saving, training."""

from __future__ import annotations

import pytest
import torch

from checkpoint_convert.modeling.configuration_baichuan import BaichuanConfig
from checkpoint_convert.modeling.modeling_baichuan import BaichuanForCausalLM

IDS = torch.randint(3, 61, (2, 11), generator=torch.Generator().manual_seed(5))


def model_of(**changes) -> BaichuanForCausalLM:
    torch.manual_seed(0)
    shape = dict(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6)
    return BaichuanForCausalLM(BaichuanConfig(**{**shape, "initializer_range": 0.3, **changes})).eval()


@torch.no_grad()
def test_cached_steps_give_the_logits_of_one_pass():
    model = model_of()
    whole = model(IDS).logits
    outputs = model(IDS[:, :4], use_cache=True)
    parts = [outputs.logits]
    for start in (4, 5, 8):
        stop = {4: 5, 5: 8, 8: 11}[start]
        outputs = model(IDS[:, start:stop], past_key_values=outputs.past_key_values, use_cache=True)
        parts.append(outputs.logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert model(IDS, use_cache=False).past_key_values is None


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_does_not_change_the_other_positions(side):
    model = model_of()
    pad = torch.zeros(2, 3, dtype=torch.int64)
    ids = torch.cat([pad, IDS] if side == "left" else [IDS, pad], 1)
    mask = (ids != 0).long()
    logits = model(ids, attention_mask=mask).logits
    kept = logits[:, 3:] if side == "left" else logits[:, : IDS.shape[1]]
    assert torch.allclose(kept, model(IDS).logits, atol=1e-5)
    assert torch.isfinite(logits).all()


@torch.no_grad()
def test_greedy_generation_is_the_argmax_with_and_without_cache_and_padding():
    model = model_of(eos_token_id=None)
    wanted = IDS.clone()
    for _ in range(6):
        wanted = torch.cat([wanted, model(wanted).logits[:, -1].argmax(-1, keepdim=True)], 1)
    plain = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(IDS, **plain), wanted)
    assert torch.equal(model.generate(IDS, use_cache=False, **plain), wanted)
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.int64), IDS], 1)
    found = model.generate(padded, attention_mask=(padded != 0).long(), **plain)
    assert torch.equal(found[:, 2:], wanted)
    assert model.generate(IDS, num_beams=3, **plain).shape == wanted.shape


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_saving_and_loading_keeps_every_logit_and_the_tie(tmp_path, tied):
    model = model_of(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    again = BaichuanForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied


def test_no_buffer_has_to_survive_loading():
    assert dict(model_of().named_buffers()) == {}


def test_the_loss_is_the_mean_of_the_next_token_and_leaves_ignored_labels_out():
    model = model_of()
    labels = IDS.clone()
    labels[:, :5] = -100
    outputs = model(IDS, labels=labels)
    log_probabilities = outputs.logits.log_softmax(-1)[:, 4:-1]
    wanted = -log_probabilities.gather(-1, IDS[:, 5:, None]).mean()
    assert torch.allclose(outputs.loss, wanted)
    summed = model(IDS, labels=labels, num_items_in_batch=24).loss
    assert torch.allclose(summed, wanted * 12 / 24)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = model_of().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    largest = max(gradient.abs().max() for gradient in gradients[0])
    # fp32 sums round by where tensors happen to lie in memory
    assert all((a - b).abs().max() <= 1e-5 * largest for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_embeddings_hidden_states_and_kept_logits():
    model = model_of()
    whole = model(IDS, output_hidden_states=True)
    assert len(whole.hidden_states) == 3
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(IDS)).logits, whole.logits)
    assert torch.allclose(model(IDS, logits_to_keep=2).logits, whole.logits[:, -2:], atol=1e-6)
    with pytest.raises(ValueError, match="one of the two"):
        model()


@pytest.mark.parametrize("tied", [False, True])
def test_the_vocabulary_can_be_extended_for_fine_tuning(tied):
    model = model_of(tie_word_embeddings=tied)
    with torch.no_grad():
        before = model(IDS).logits
        model.resize_token_embeddings(70)
        assert torch.allclose(model(IDS).logits[..., :61], before, atol=1e-6)
    assert model.config.vocab_size == 70
    model(torch.full((1, 3), 69), labels=torch.full((1, 3), 69)).loss.backward()


@torch.no_grad()
def test_half_precision_stays_near_the_exact_logits_at_long_distances():
    model = model_of(num_hidden_layers=1)
    ids = torch.randint(3, 61, (1, 600), generator=torch.Generator().manual_seed(6))
    exact = model(ids).logits
    rounded = model.to(torch.bfloat16)(ids).logits.float()
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@torch.no_grad()
def test_norm_head_sees_directions_only_and_is_kept_by_saving(tmp_path):
    model = model_of(norm_head=True)
    plain = model_of()
    plain.load_state_dict(model.state_dict())
    lengths = model.lm_head.weight.norm(dim=-1)
    assert torch.allclose(model(IDS).logits, plain(IDS).logits / lengths, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = BaichuanForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again.lm_head.weight, model.lm_head.weight) and torch.equal(again(IDS).logits, model(IDS).logits)
    model.lm_head.weight.mul_(torch.logspace(-1, 1, 61)[:, None])
    assert torch.allclose(model(IDS).logits, again(IDS).logits, atol=1e-5)
