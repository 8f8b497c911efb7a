"""The fused parts of a model: which models get them, and that nothing but the time changes."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.learner.models import VOCABULARY, gemma3, of_kind, qwen3
from tests.learner.reference import relative_difference
from torch import nn

from agentrl.learner import fused, probe
from agentrl.learner.fused import fuse, gated, gated_halves, rms_norm, rotate
from agentrl.learner.probe import probe_forest

EXACT = 1e-6
"""Relative difference of gradients in float64, of models whose norms round to float32 all the same."""
ROUNDED = 2e-5
"""The same in float32."""
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "olmo": {},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "gemma2": {"query_pre_attn_scalar": 8},
}


def parts(model: nn.Module) -> set[str]:
    """What of the model is fused, by the last part of the name in its layers."""
    names = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__module__ == fused.__name__
    }
    return {"norm" if "norm" in name else name for name in names}


def made(kind: str) -> nn.Module:
    if kind in FAMILIES:
        return of_kind(kind, **FAMILIES[kind]).double()
    return {"qwen3": qwen3, "gemma3": gemma3}[kind]()


def gradient(model: nn.Module) -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCABULARY, (2, 21), generator=torch.Generator().manual_seed(1))
    logprob = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
    weight = torch.randn(logprob.shape, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    (logprob * weight).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", *FAMILIES])
def test_a_fused_model_has_the_gradient_of_the_plain_one(kind, monkeypatch):
    monkeypatch.setattr(fused, "BLOCK", 200)  # so that every part goes over several blocks
    plain = made(kind)
    other = copy.deepcopy(plain)
    assert fuse(other)
    expected = {"self_attn"}
    expected |= set() if kind == "phi" else {"mlp"}
    expected |= set() if kind in ("phi", "olmo") else {"norm"}  # theirs are layer norms, which torch has fused
    assert parts(other) == expected
    assert relative_difference(gradient(other), gradient(plain)) < EXACT
    plain, other = plain.float(), other.float()  # in which norms are fused too
    assert relative_difference(gradient(other), gradient(plain)) < ROUNDED


def test_the_gradient_repeats_bit_for_bit_and_survives_a_copy():
    model = of_kind("llama")
    fuse(model)
    first = gradient(copy.deepcopy(model))
    second = gradient(model)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_probe_leaves_a_model_plain_that_would_score_otherwise(monkeypatch):
    model = of_kind("llama")
    before = [type(module) for module in model.modules()]
    monkeypatch.setattr(fused, "_TOLERANCE", 10.0)  # so that a part is taken for another
    monkeypatch.setattr(fused, "rms_norm", lambda x, weight, eps, offset: rms_norm(x, weight, eps, 1.0 - offset))
    with pytest.warns(UserWarning, match="without fused parts, .*: logprobs then differ by"):
        assert probe_forest(model) is None
    assert [type(module) for module in model.modules()] == before
    monkeypatch.undo()
    assert probe_forest(model) is None
    assert parts(model) == {"norm", "mlp", "self_attn"}


def test_a_part_that_fails_leaves_the_model_plain(monkeypatch):
    model = of_kind("llama")

    def broken(*arguments: object) -> None:
        raise RuntimeError

    before = [type(module) for module in model.modules()]
    monkeypatch.setattr(probe, "fuse", lambda model: _breaking(model, broken))
    with pytest.warns(UserWarning, match="without fused parts, .*: RuntimeError"):
        assert probe_forest(model) is None
    assert [type(module) for module in model.modules()] == before


def _breaking(model: nn.Module, forward: object) -> fused.Fused:
    made = fused.Fused()
    norm = model.model.norm
    made.replace(norm, type("Broken", (type(norm),), {"forward": forward}))
    return made


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm(offset):
    x, weight = numbers(3, 5, 7), numbers(7)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-6, offset), (x, weight))
    found = rms_norm(x, weight, 1e-6, offset)
    torch.testing.assert_close(found, nn.functional.rms_norm(x, (7,), weight + offset, 1e-6))


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_a_gate(kind):
    gate, up = numbers(3, 4, 6), numbers(3, 4, 6)
    assert torch.autograd.gradcheck(lambda gate, up: gated(kind, gate, up), (gate, up))
    joint = torch.cat([gate, up], dim=-1).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda joint: gated_halves(kind, joint), (joint,))
    torch.testing.assert_close(gated_halves(kind, joint), gated(kind, gate, up))


def test_a_rotation():
    query, key = numbers(1, 5, 4, 8).transpose(1, 2), numbers(1, 5, 2, 8).transpose(1, 2)
    cos, sin = numbers(1, 5, 8).detach(), numbers(1, 5, 8).detach()
    assert torch.autograd.gradcheck(lambda query, key: rotate(query, key, cos, sin), (query, key))


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))
    ).requires_grad_()
