"""Optimisers that take less memory: what they change, and where they are refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tests.learner.models import qwen3
from tests.learner.test_learner import folder, learner, same, shared_prompts, state  # noqa: F401 - a fixture

from agentrl.config.models import Config
from agentrl.config.training import OptimiserSection
from agentrl.errors import ConfigError, PluginError
from agentrl.extras import MissingExtra
from agentrl.learner import optimiser
from agentrl.learner.masters import Masters
from agentrl.learner.optimiser import check_optimiser

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None


def test_the_optimiser_is_written_as_a_name_or_with_its_keys():
    for written in ("adamw", {"name": "adamw"}, {"bits": 32}):
        assert Config.model_validate({"training": {"optimiser": written}}).training.optimiser == OptimiserSection()
    kept = Config.model_validate({"training": {"optimiser": {"bits": 8, "offload": True}}})
    assert kept.model_dump(mode="json")["training"]["optimiser"] == {"name": "adamw", "bits": 8, "offload": True}
    assert Config().model_dump(mode="json")["training"]["optimiser"] == "adamw"


def test_offloading_a_learner_that_is_on_the_cpu_is_refused_as_without_effect(folder):  # noqa: F811
    with pytest.raises(ConfigError, match=r"training\.optimiser\.offload=true has no effect") as raised:
        learner(folder, optimiser={"offload": True})
    assert raised.value.key == "training.optimiser.offload"
    check_optimiser(OptimiserSection(offload=True), CUDA)


def test_offloaded_masters_get_the_gradients_of_all_passes_and_give_their_values_back():
    """On the CPU, where only the device is another: what is offloaded is apart from the model there too."""
    model = qwen3().float()
    plain = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    masters = Masters()
    masters.take(model, CPU, torch.float32, offload=True)
    ids = torch.tensor([[1, 2, 3, 4]])
    for _ in range(2):
        model(ids).logits.square().sum().backward()
    assert all(weight.grad is None for weight in model.parameters())
    whole = qwen3().float()
    whole.load_state_dict(plain, strict=False)
    (2 * whole(ids).logits.square().sum()).backward()
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(masters.parameters[name].grad, weight.grad)
    with torch.no_grad():
        for master in masters.parameters.values():
            master += 1.0
    assert all(torch.equal(weight, plain[name]) for name, weight in model.named_parameters())
    masters.publish()
    assert all(torch.equal(weight, plain[name] + 1.0) for name, weight in model.named_parameters())


@pytest.mark.skipif(HAS_TORCHAO, reason="torchao is installed")
def test_8_bits_without_torchao_name_the_extra(folder):  # noqa: F811
    with pytest.raises(MissingExtra, match=r"torchao is not installed: it comes with agentrl-core\[torchao\]"):
        learner(folder, optimiser={"bits": 8})


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_8_bits_without_a_compiler_are_refused_before_anything_is_loaded(monkeypatch, device):
    monkeypatch.setattr(optimiser, "require", lambda module: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(PluginError, match=r"bits=8 compiles .* the compiler no-such-compiler is not found"):
        check_optimiser(OptimiserSection(bits=8), device)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@pytest.mark.skipif(not HAS_TORCHAO, reason="needs torchao: pip install 'agentrl-core[torchao]'")
def test_8_bits_learn_like_32_and_go_on_bit_for_bit(folder, tmp_path):  # noqa: F811
    whole, exact = (learner(folder, optimiser={"bits": bits}, learning_rate=1e-3) for bits in (8, 32))
    for seed in range(2):
        quantised, plain = whole.step(shared_prompts(seed)), exact.step(shared_prompts(seed))
    assert quantised["policy/loss"] == pytest.approx(plain["policy/loss"], rel=1e-2, abs=1e-3)
    whole.save(tmp_path)
    whole.save_state(tmp_path)
    resumed = learner(tmp_path, optimiser={"bits": 8}, learning_rate=1e-3)
    resumed.load_state(tmp_path)
    for seed in range(2, 4):
        whole.step(shared_prompts(seed))
        resumed.step(shared_prompts(seed))
    assert same(state(whole), state(resumed))
    assert not same(state(whole), state(exact))
