"""Adapters of low rank: their gradient is peft's own, their sum with the model is one model, and they are all that is
trained."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import groups_of_one_turn, wandering_groups
from tests.learner.models import VOCABULARY, gemma3, of_kind, qwen3
from tests.learner.reference import reference_gradient, relative_difference
from torch import nn
from transformers import AutoModelForCausalLM

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import LoraModel, TrainingSection
from agentrl.errors import ConfigError, RunError
from agentrl.inference.adapter_folder import read_adapter
from agentrl.inference.merging import load_whole, merged_weight
from agentrl.learner.adapters import LoraAdapter, plan_adapter
from agentrl.learner.contract import Targets
from agentrl.learner.export import export
from agentrl.learner.gradient import accumulate_gradient
from agentrl.learner.learner import Learner
from agentrl.learner.packing import pack
from agentrl.learner.policy import Policy
from agentrl.learner.probe import probe_forest

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""peft asks for it."""

GRPO = grpo()
IDS = [index * 7 % VOCABULARY for index in range(30)]
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chat_tokenizer):
    made = tmp_path_factory.mktemp("base")
    qwen3(tied=True).float().save_pretrained(made)
    chat_tokenizer.save_pretrained(made)
    return made


def learner(folder, *, rank=4, training=None, **lora):
    settings = TrainingSection(learning_rate=1e-2, lora=LoraModel(rank=rank, **lora), **(training or {}))
    return Learner(folder, settings, GRPO.loss, seed=0)


def batch(seed=0):
    return build_batch(
        groups_of_one_turn(random.Random(seed), VOCABULARY, groups=2, size=3, prompt=6, longest=5), GRPO
    )[0]


def perturbed(adapter, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in adapter.tensors():
            tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor), alpha=0.1)
    return adapter


def scores(made, ids=IDS):
    count = len(ids) - 1
    targets = Targets(np.zeros(count, dtype=np.int64), np.arange(count), np.array(ids[1:]), np.ones(count))
    return made.score(targets, [np.array(ids)]).logprob


def weights_of(made):
    with made.lend("a test") as weights:
        return {name: tensor.clone() for name, tensor in weights.tensors()}


@pytest.mark.parametrize("build", [qwen3, lambda: qwen3(window=5), gemma3], ids=["full", "sliding", "gemma"])
def test_gradients_through_the_forest_are_those_of_peft_on_a_plain_forward(build):
    groups = wandering_groups(random.Random(3), VOCABULARY, groups=2, size=3)
    ours, plain = build(), build()
    adapter = perturbed(LoraAdapter(ours, LoraModel(rank=3, alpha=5)))
    assert probe_forest(ours) is None
    batch, _ = build_batch(groups, GRPO)
    passes = pack(batch.paths, batch.targets, 8192, forest=True)
    metrics = accumulate_gradient(Policy(ours, adapter=adapter), batch, passes, GRPO.loss).metrics
    found = {name: tensor.grad for name, tensor in adapter.tensors()}

    peft = get_peft_model(plain, LoraConfig(r=3, lora_alpha=5, target_modules="all-linear"))
    own = {name: tensor for name, tensor in peft.named_parameters() if tensor.requires_grad}
    short = {name.removeprefix("base_model.model.").replace(".default.", "."): name for name in own}
    assert short.keys() == found.keys()
    with torch.no_grad():
        for name, tensor in adapter.tensors():
            own[short[name]].copy_(tensor)
    loss, _ = reference_gradient(_OnlyTrained(peft), groups, GRPO)
    assert metrics["policy/loss"] == pytest.approx(loss, rel=1e-9)
    assert relative_difference(found, {name: own[short[name]].grad for name in found}) < 1e-6


class _OnlyTrained:
    """A model whose parameters are those that are trained, for a reference that asks each for its gradient."""

    def __init__(self, model):
        self.config, self.zero_grad, self._model = model.config, model.zero_grad, model

    def __call__(self, **inputs):
        return self._model(**inputs)

    def named_parameters(self):
        return [(name, each) for name, each in self._model.named_parameters() if each.requires_grad]


def test_only_the_adapter_is_trained_and_in_the_optimiser(folder):
    made = learner(folder)
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    assert made.step(batch()).metrics["policy/updated"] == 1
    changed = {name for name, parameter in made.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    held = made._optimiser.state_dict()["adamw"]["param_groups"]
    assert sum(len(group["params"]) for group in held) == len(list(made.adapter.tensors()))


def test_the_model_begins_as_it_was_to_the_bit(folder):
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        whole.model.layers[0].self_attn.q_proj.weight[0] = -0.0
    whole.save_pretrained(folder)
    made = learner(folder)
    for name, parameter in whole.named_parameters():
        merged = weights_of(made)[name]
        assert torch.equal(merged.view(torch.int32), parameter.view(torch.int32)), name
    plain = Learner(folder, TrainingSection(), GRPO.loss, seed=0)
    assert scores(made).tolist() == scores(plain).tolist()


def test_merged_weights_have_the_names_and_the_outputs_of_the_whole_model(folder, tmp_path):
    made = learner(folder)
    perturbed(made.adapter)
    with made.lend("a test") as weights:
        weights.save(tmp_path)
        names = weights.names()
        dtypes = dict.fromkeys(names, "float32") | {"lm_head.weight": "float32"}
        digests = weights.digests(dtypes)
        logprobs = weights.logprobs(IDS)
    assert not (tmp_path / "adapter_config.json").exists()
    whole = Learner(tmp_path, TrainingSection(), GRPO.loss, seed=0)
    with whole.lend("a test") as weights:
        assert weights.names() == names
        assert weights.digests(dtypes) == digests
        assert weights.logprobs(IDS) == pytest.approx(logprobs, abs=2e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_an_engine_merges_and_rounds_is_scored_with_the_same_numbers(folder, tmp_path, precision):
    """An engine in 16 bits has the rounded sum, which is as far from base and adapter apart as its digits reach."""
    made = learner(folder, training={"precision": precision})
    perturbed(made.adapter)
    rounded = load_whole(folder, torch.float32)
    with made.lend("a test") as weights, torch.no_grad():
        for name, tensor in weights.tensors():
            rounded.get_parameter(name).copy_(tensor.to(torch.bfloat16) if ".layers." in name else tensor)
        apart = weights.logprobs(IDS)
        dtypes = dict.fromkeys(weights.names(), "bfloat16")
        merged = weights.adapter.merged_logprobs(IDS, dtypes)
        exact = weights.adapter.merged_logprobs(IDS, {})
        assert weights.logprobs(IDS) == apart
    rounded.save_pretrained(tmp_path)
    whole = Learner(tmp_path, TrainingSection(precision=precision), GRPO.loss, seed=0)
    with whole.lend("a test") as weights:
        expected = weights.logprobs(IDS)
    assert merged == pytest.approx(expected, abs=2e-5)
    if precision == "float32":
        assert exact == pytest.approx(apart, abs=2e-5)
        assert merged != pytest.approx(apart, abs=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_sum_has_the_same_bits_however_many_threads_there_are(threads):
    generator = torch.Generator().manual_seed(1)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in ((577, 130), (16, 130), (577, 16)))
    expected = merged_weight(weight, a, b, 2.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(merged_weight(weight, a, b, 2.0), expected)
    finally:
        torch.set_num_threads(before)


def test_an_adapter_over_transposed_weights_is_merged_as_peft_merges_it():
    model = of_kind("gpt2", **GPT2)
    adapter = perturbed(LoraAdapter(model, LoraModel(rank=3)))
    assert {"c_attn", "c_proj", "c_fc"} == set(adapter.targets)
    for layer in adapter.layers.values():
        expected = layer.get_base_layer().weight + layer.get_delta_weight("default")
        assert torch.allclose(adapter.merged(layer), expected, atol=1e-6)


def test_a_saved_adapter_is_one_that_transformers_and_peft_load(folder, tmp_path):
    made = learner(folder, targets=["q_proj", "down_proj"], alpha=3.0)
    perturbed(made.adapter)
    made.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 3, str(folder))
    assert (tmp_path / "tokenizer.json").exists()
    expected = load_whole(tmp_path, torch.float32)(torch.tensor([IDS])).logits
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), PeftModel.from_pretrained(base, tmp_path)):
        assert torch.allclose(loaded(torch.tensor([IDS])).logits, expected, atol=1e-4)


def test_a_resumed_adapter_goes_on_bit_for_bit(folder, tmp_path):
    straight, stopped = learner(folder, dropout=0.2), learner(folder, dropout=0.2)
    for seed in (1, 2):
        straight.step(batch(seed))
    torch.manual_seed(0)
    stopped = learner(folder, dropout=0.2)
    stopped.step(batch(1))
    stopped.save(tmp_path)
    stopped.save_state(tmp_path)
    torch.manual_seed(99)
    resumed = learner(tmp_path, dropout=0.2)
    resumed.load_state(tmp_path)
    assert resumed.version == 1
    resumed.step(batch(2))
    stopped.load_state(tmp_path)
    stopped.step(batch(2))
    for (name, left), (_, right) in zip(resumed.adapter.tensors(), stopped.adapter.tensors(), strict=True):
        assert torch.equal(left, right), name


def test_it_goes_back_to_an_adapter_that_was_saved(folder, tmp_path):
    made = learner(folder)
    made.step(batch(1))
    made.save(tmp_path)
    made.save_state(tmp_path)
    saved = weights_of(made)
    made.step(batch(2))
    assert any(not torch.equal(tensor, saved[name]) for name, tensor in weights_of(made).items())
    made.go_back(tmp_path, 7)
    assert made.version == 7
    assert all(torch.equal(tensor, saved[name]) for name, tensor in weights_of(made).items())


def test_without_its_adapter_the_model_is_the_base(folder):
    made, base = learner(folder), Learner(folder, TrainingSection(), GRPO.loss, seed=0)
    made.step(batch())
    trained = scores(made)
    with made.without_adapter():
        assert scores(made).tolist() == scores(base).tolist()
    assert scores(made).tolist() == trained.tolist() != scores(base).tolist()
    assert made.step(batch(2)).metrics["policy/updated"] == 1
    with pytest.raises(ValueError, match="there is no adapter to leave out"):
        base.without_adapter()


def test_dropout_falls_on_gradients_alone(folder):
    made, dry = learner(folder, dropout=0.5), learner(folder)
    perturbed(made.adapter)
    perturbed(dry.adapter)
    assert scores(made).tolist() == scores(dry).tolist()
    assert made.step(batch()).metrics["policy/loss"] != dry.step(batch()).metrics["policy/loss"]


def test_digests_of_base_and_adapter_apart(folder):
    made = learner(folder)
    perturbed(made.adapter)
    base = Learner(folder, TrainingSection(), GRPO.loss, seed=0)
    with made.lend("a test") as weights, base.lend("a test") as frozen:
        dtypes = dict.fromkeys(weights.names(), "bfloat16")
        assert weights.adapter.digests(dtypes) == frozen.digests(dtypes)
        assert frozen.adapter is None
        name, tensor = next(each for each in weights.adapter.tensors() if each[0].endswith("lora_B.weight"))
        (found,) = weights.adapter.digests({name: "float32"}).values()
        from agentrl import tensor_digest

        assert found.digest == tensor_digest(2.0 * tensor)
        adapter = weights.adapter
    with pytest.raises(RuntimeError, match="after giving them back"):
        list(adapter.merged())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 17}, "rank=17 is larger than model.layers.0.self_attn.k_proj, which is 16 x 32 (set training.lora."),
        ({"targets": ["q_prj"]}, "'q_prj' is the name of no layer of Qwen3ForCausalLM (did you mean 'q_proj'"),
        ({"targets": ["q_proj", "lm_head"]}, "'lm_head' is lm_head, a Linear, and only linear projections of"),
        ({"targets": ["embed_tokens"]}, "'embed_tokens' is model.embed_tokens, a Embedding, and only linear"),
        ({"targets": ["input_layernorm"]}, "'input_layernorm' is model.layers.0.input_layernorm, a Qwen3RMSNorm, and"),
    ],
)
def test_wrong_ranks_and_targets_are_refused(folder, settings, said):
    for refuse in (plan_adapter, lambda folder, lora: learner(folder, **lora.model_dump())):
        with pytest.raises(ConfigError) as caught:
            refuse(folder, LoraModel(**settings))
        assert said in str(caught.value)


def test_a_plan_says_what_would_be_trained(folder):
    made = learner(folder)
    plan = plan_adapter(folder, LoraModel(rank=4))
    assert plan.trained == made.adapter.size == sum(p.numel() for p in made.model.parameters() if p.requires_grad)
    assert (plan.layers, plan.total) == (len(made.adapter.layers), made.model.num_parameters() - plan.trained)
    assert "adapter of rank 4 on 21 layers (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj)" in str(plan)


def test_a_model_without_linear_layers_is_refused():
    model = qwen3()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            module.__class__ = type("Odd", (nn.Linear,), {})
    with pytest.raises(ConfigError, match="has no linear projection in its layers that peft could adapt"):
        LoraAdapter(model, LoraModel(rank=2))


def test_what_peft_refuses_is_told_before_anything_is_loaded(tmp_path):
    sizes = {"num_heads": 4, "head_dim": 16, "state_size": 4, "n_groups": 1}
    of_kind("mamba2", **sizes).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="peft cannot adapt Mamba2ForCausalLM"):
        plan_adapter(tmp_path, LoraModel(rank=2))


def test_an_adapter_of_another_shape_is_not_gone_on_with(folder, tmp_path):
    learner(folder).save(tmp_path)
    with pytest.raises(ConfigError, match=r"has rank 4, and training.lora.rank is 8 \(set training.lora.rank=4, or"):
        learner(tmp_path, rank=8)
    with pytest.raises(ConfigError, match=r"is on other layers than training.lora.targets adapts"):
        learner(tmp_path, targets=["q_proj"])


def test_an_adapter_over_another_base_or_of_a_damaged_file_is_refused_before_anything_is_loaded(folder, tmp_path):
    learner(folder).save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    stored = load_file(path)
    first = next(name for name in stored if name.endswith("lora_A.weight"))
    save_file(stored | {first: torch.zeros(4, stored[first].shape[1] + 8)}, path)
    with pytest.raises(ConfigError, match=r"was made for another model than .*, and the adapter's is"):
        plan_adapter(tmp_path, LoraModel(rank=4))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"safetensors cannot be read"):
        plan_adapter(tmp_path, LoraModel(rank=4))


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_that_cannot_be_written_says_so_without_advice_about_runs(folder, tmp_path, merge):
    learner(folder).save(tmp_path)
    with pytest.raises(RunError, match=r"cannot write /proc/.*name a folder that can be written"):
        export(tmp_path, Path("/proc/agentrl"), merge=merge)


def test_a_base_that_is_gone_is_named(folder, tmp_path):
    learner(folder).save(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(ConfigError, match=r"the base model of the adapter in .* was /gone/base, which is not there"):
        learner(tmp_path)
    path.write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ConfigError, match="has use_dora=True, which only peft can compute"):
        read_adapter(tmp_path)


def test_in_bfloat16_an_adapter_is_trained_and_saved_in_float32(folder, tmp_path):
    made = learner(folder, training={"precision": "bfloat16"})
    assert {parameter.dtype for parameter in made.model.parameters()} == {torch.bfloat16}
    made.step(batch(1))
    with made.without_adapter():
        scores(made)
    made.step(batch(2))
    made.save(tmp_path)
    made.save_state(tmp_path)
    masters = made._masters.tensors()
    made.step(batch(3))
    resumed = learner(tmp_path, training={"precision": "bfloat16"})
    resumed.load_state(tmp_path)
    resumed.step(batch(3))
    for name, tensor in made._masters.tensors().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, resumed._masters.tensors()[name])
    assert any(not torch.equal(each.bfloat16().float(), each) for each in masters.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_base_for_which_there_is_room_in_its_own_type_alone_is_trained_as_any(folder, monkeypatch, precision):
    """It is probed in that type, and is never on the device in float32."""
    usual = learner(folder, training={"precision": precision})
    seen = []

    def watched(model, shards=None):
        seen.append({parameter.dtype for parameter in model.parameters()})
        return probe_forest(model)

    monkeypatch.setattr("agentrl.learner.learner.has_room_in_float32", lambda model, device: False)
    monkeypatch.setattr("agentrl.learner.learner.probe_forest", watched)
    tight = learner(folder, training={"precision": precision})
    assert seen == [{getattr(torch, precision)}]
    assert tight.rows_because is None
    assert tight.step(batch(1)).metrics["policy/loss"] == usual.step(batch(1)).metrics["policy/loss"]
    tight.step(batch(2))
    usual.step(batch(2))
    for name, tensor in usual._masters.tensors().items():
        assert torch.equal(tensor, tight._masters.tensors()[name])
