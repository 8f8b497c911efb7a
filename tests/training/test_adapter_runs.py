"""Runs that train an adapter: they learn, their checkpoints are adapters, and whatever takes a model takes those."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from tests.algorithms.algorithms import grpo

from agentrl import Trainer, load_config, open_run
from agentrl.cli import main as command
from agentrl.config.training import LoraModel, TrainingSection
from agentrl.errors import ConfigError
from agentrl.inference.adapter_folder import is_adapter
from agentrl.inference.contract import AdapterContext, BackendContext, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.merging import load_whole
from agentrl.learner.learner import Learner
from agentrl.reporting.plain import PlainReporter
from agentrl.testing.parts import model_folder
from agentrl.tokens.selection import load_renderer

LEARNING = (
    *("training.lora=16", "training.learning_rate=2e-3", "training.steps=8", "training.checkpoint_every=4"),
    *("evaluation.every=4", "evaluation.tasks=48", "training.keep=1"),
)
SMALL = (
    *("rollout.tasks_per_step=2", "rollout.group_size=4", "training.lora={rank: 4, dropout: 0.1}", "tasks.eval=null"),
    *("training.learning_rate=1e-3", "training.checkpoint_every=2"),
)
IDS = list(range(40, 80))


class Plain(TorchBackend):
    """A backend that knows nothing of adapters."""

    takes_adapters = False
    started_on: ClassVar[list[tuple[Path, bool]]] = []

    async def start(self):
        folder = self._context.model_folder
        self.started_on.append((folder, (folder / "model.safetensors").exists()))
        return await super().start()


def train(folder: Path, *settings: str) -> tuple[Path, str]:
    told = io.StringIO()
    config = load_config(None, f"run.dir={folder}", *settings, environ={})
    with Trainer(config, reporter=PlainReporter(told)) as trainer:
        summary = trainer.train("math")
    return Path(summary.checkpoint), told.getvalue()


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[Path, str, Path]:
    """The newest checkpoint of a run that learns, what was told, and its base model."""
    folder = tmp_path_factory.mktemp("learned")
    base = shutil.copytree(model_folder(), folder / "base")
    checkpoint, told = train(folder, *LEARNING, "run.name=run", f"model={base}")
    return checkpoint, told, base


def main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    return ended.value.code


def adapter_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "adapter_model.safetensors")


def test_an_adapter_learns_and_its_checkpoints_are_adapters(learned):
    checkpoint, told, base = learned
    run = open_run(checkpoint.parent.parent)
    before, *_, after = (line.metrics["evaluation/reward"] for line in run.evaluations())
    assert after > before + 0.3
    assert "65,536 parameters are trained, 15.04% of the model's 0.4 M: an adapter of rank 16 on 14 layers" in told
    assert {each.step for each in run.checkpoints()} == {8, run.best_checkpoint().step}
    assert is_adapter(checkpoint)
    assert not list(checkpoint.glob("model*"))
    assert (checkpoint / "tokenizer.json").exists()
    assert json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    rows = [line.metrics for line in run.steps()]
    assert all(row["proof/tensors"] for row in rows)
    assert max(row["policy/mismatch_kl"] for row in rows) < 1e-8


def test_the_engine_has_the_learners_logprobs_after_every_update(tmp_path):
    learner = Learner(model_folder(), TrainingSection(lora=LoraModel(rank=8)), grpo().loss, seed=0)
    prompt = load_renderer(model_folder()).render([{"role": "user", "content": "What is 12 + 34?"}])

    async def compared() -> list[float]:
        backend = TorchBackend(BackendContext(model_folder(), adapter=AdapterContext(8)))
        await backend.start()
        off = []
        try:
            for seed in range(4):
                generator = torch.Generator().manual_seed(seed)
                with torch.no_grad():
                    for _, tensor in learner.adapter.tensors():
                        tensor.add_(
                            torch.randn(tensor.shape, generator=generator), alpha=1e-3
                        )  # As far as a step goes.
                learner.version += 1
                with learner.lend("the engine") as weights:
                    await backend.update_weights(weights)
                    request = GenerationRequest(prompt, Sampling(max_tokens=24, seed=seed))
                    done = [chunk async for chunk in backend.generate(request)][-1]
                    ours = weights.logprobs([*prompt, *done.ids])[-len(done.ids) :]
                assert set(done.versions) == {learner.version}
                off += [one - other for one, other in zip(ours, done.logprobs, strict=True)]
        finally:
            await backend.stop()
        return off

    off = asyncio.run(compared())
    assert sum(each**2 for each in off) / len(off) < 1e-5**2
    assert max(map(abs, off)) < 3e-5  # Seldom does rounding alone take the engine 1e-5 from a forward in 64 bits.


def test_a_run_goes_on_from_an_adapter_to_the_bit(tmp_path):
    whole, _ = train(tmp_path, *SMALL, "training.steps=4", "run.name=whole")
    part, _ = train(tmp_path, *SMALL, "training.steps=2", "run.name=part")
    told = io.StringIO()
    with Trainer.resume(part.parent.parent, "training.steps=4", reporter=PlainReporter(told)) as trainer:
        resumed = Path(trainer.train().checkpoint)
    assert "resumed from step 2" in told.getvalue()
    expected = adapter_of(whole)
    for name, tensor in adapter_of(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    losses = [[line.metrics["policy/loss"] for line in open_run(each.parent.parent).steps()] for each in (whole, part)]
    assert losses[0] == losses[1]
    with pytest.raises(ConfigError, match=r"another training.lora|has rank 4, and training.lora.rank is 8"):
        Trainer.resume(part.parent.parent, "training.steps=6", "training.lora.rank=8").train()


def test_an_evaluation_of_a_checkpoint_measures_what_its_run_measured(learned, capsys, monkeypatch, tmp_path):
    checkpoint, _, _ = learned
    run = open_run(checkpoint.parent.parent)
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(checkpoint), "--json", f"run.dir={tmp_path}"]) == 0
    measured = json.loads(capsys.readouterr().out)
    last = run.evaluations()[-1].metrics
    assert measured["reward"] == last["evaluation/reward"]
    # A backend that takes no adapters is given the whole model, which is removed after it.
    Plain.started_on.clear()
    part = f"inference.backend={__name__}:Plain"
    assert main(["eval", str(checkpoint), "--json", f"run.dir={tmp_path}", part]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] == last["evaluation/reward"]
    ((folder, was_there),) = Plain.started_on
    assert was_there
    assert not folder.exists()


@pytest.mark.parametrize("more", ["training.lora=16", "training.lora=null"])
def test_another_run_starts_from_an_adapter(learned, more, tmp_path):
    checkpoint, _, base = learned
    brief = ("tasks.eval=null", "training.steps=1", "rollout.tasks_per_step=2", "rollout.group_size=4")
    saved, _ = train(tmp_path, *brief, "training.learning_rate=0", more, f"model={checkpoint}", "run.name=next")
    if more.endswith("16"):
        assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
        before, after = adapter_of(checkpoint), adapter_of(saved)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    else:
        assert not is_adapter(saved)
    old, new = (dict(load_whole(each, torch.float32).named_parameters()) for each in (checkpoint, saved))
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())


def test_what_an_adapter_does_not_fit_is_refused_before_a_run_has_a_folder(learned, tmp_path):
    checkpoint, _, base = learned
    for settings, said in (
        (("training.lora=8", f"model={checkpoint}"), r"has rank 16, and training.lora.rank is 8"),
        (
            ("training.lora={rank: 16, alpha: 4}", f"model={checkpoint}"),
            r"is scaled by 2, and training.lora",
        ),
        (("training.lora=65",), r"training.lora.rank=65 is larger than model.layers.0"),
        (("training.lora={targets: [q_porj]}",), r"did you mean 'q_proj'"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(tmp_path, *settings)
    assert not list(tmp_path.iterdir())
    gone = shutil.copytree(checkpoint, tmp_path / "gone")
    path = gone / "adapter_config.json"
    path.write_text(path.read_text().replace(str(base), str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"the base model of the adapter in .*gone was .*nowhere, which is not there"):
        train(tmp_path / "runs", f"model={gone}")


def test_an_adapter_and_the_whole_model_are_exported(learned, tmp_path, capsys):
    checkpoint, _, base = learned
    adapter, merged, copied = (tmp_path / name for name in ("adapter", "merged", "copied"))
    assert main(["export", str(checkpoint.parent.parent), str(adapter)]) == 0
    assert main(["export", str(checkpoint), str(merged), "--merge", "--json"]) == 0
    assert main(["export", str(merged), str(copied)]) == 0
    assert '"kind": "model"' in capsys.readouterr().out
    assert {path.name for path in adapter.iterdir()} == {path.name for path in checkpoint.iterdir()} - {
        "learner.pt",
        "checkpoint.json",
    }
    assert {path.name for path in copied.iterdir()} == {path.name for path in merged.iterdir()}
    expected = load_whole(checkpoint, torch.float32)(torch.tensor([IDS])).logits
    base_dtype = next(load_whole(base, "auto").parameters()).dtype
    for folder in (adapter, merged, copied):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
        assert torch.allclose(model(torch.tensor([IDS])).logits.float(), expected, atol=2e-2)
    assert model.dtype == base_dtype
    for arguments, said in (
        ([str(checkpoint), str(adapter)], "is there already, and nothing is overwritten"),
        ([str(merged), str(tmp_path / "x"), "--merge"], "is a whole model: there is no adapter to merge"),
        ([str(tmp_path / "none"), str(tmp_path / "x")], "is no bundled model, no folder"),
    ):
        assert main(["export", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
