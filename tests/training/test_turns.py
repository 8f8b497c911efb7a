"""A learner and an engine that share a device take turns: none samples while the other computes."""

from __future__ import annotations

import io

import pytest

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError
from agentrl.learner.learner import Learner
from agentrl.reporting.plain import PlainReporter

SLEEPY = '''
"""The torch engine, which notes when it sleeps and what it is asked for meanwhile."""
from contextlib import aclosing
from agentrl.inference.engine.backend import TorchBackend

LOG = []

class Sleepy(TorchBackend):
    sleeps = True
    asleep = False
    stale = False
    under_way = 0

    async def start(self):
        LOG.append("start")
        return await super().start()

    async def sleep(self):
        assert not self.asleep and not self.under_way
        self.asleep = True
        LOG.append("sleep")

    async def wake(self):
        assert self.asleep
        self.asleep, self.stale = False, True
        LOG.append("wake")

    async def update_weights(self, weights):
        assert not self.asleep
        self.stale = False
        LOG.append("update")
        await super().update_weights(weights)

    async def score(self, ids):
        assert not self.asleep and not self.stale
        return await super().score(ids)

    async def generate(self, request):
        assert not self.asleep, "a request is sampled while the engine sleeps"
        assert not self.stale, "a request is sampled before the weights have come back"
        self.under_way += 1
        try:
            async with aclosing(super().generate(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.under_way -= 1
'''
BRIEF = (
    "rollout.tasks_per_step=2",
    "rollout.group_size=2",
    "rollout.max_tokens=8",
    "evaluation.tasks=2",
    "evaluation.every=1",
)


def configured(tmp_path, *settings):
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    backend = f"inference.backend={tmp_path / 'sleepy.py'}:Sleepy"
    return load_config(None, f"run.dir={tmp_path}", "run.name=run", backend, *BRIEF, *settings, environ={})


def test_an_engine_that_sleeps_samples_nothing_during_a_step_and_the_learners_states_are_aside_else(
    tmp_path, monkeypatch
):
    log: list[str] = []
    step, aside = Learner.step, Learner.set_aside

    def stepping(self, batch):
        log.append("step")
        assert self._aside is not None
        assert not self._aside.is_aside
        return step(self, batch)

    def setting_aside(self):
        log.append("aside")
        aside(self)

    monkeypatch.setattr(Learner, "step", stepping)
    monkeypatch.setattr(Learner, "set_aside", setting_aside)
    config = configured(tmp_path, "training.steps=2")
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        registered = trainer.plugins.get("backends", config.inference.backend.name)
        monkeypatch.setitem(registered.start.__globals__, "LOG", log)
        summary = trainer.train("math")
    assert (summary.outcome, summary.steps) == ("completed", 2)
    rows = [line.metrics for line in open_run(tmp_path / "run").metrics() if not line.is_evaluation]
    assert len(rows) == 2
    assert all(row["seconds/sleep"] > 0 and row["seconds/wake"] > 0 for row in rows)
    assert log == ["aside", "start", *(["sleep", "step", "aside", "wake", "update"] * 2)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("rollout.max_staleness=1",), r"sleeps while the learner steps.*max_staleness=1 episodes run during steps"),
        (("evaluation.overlap=true",), r"evaluation\.overlap=true an evaluation runs beside them"),
    ],
)
def test_what_would_sample_during_a_step_is_refused_before_anything_starts(tmp_path, settings, says):
    config = configured(tmp_path, *settings)
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer, pytest.raises(ConfigError, match=says):
        trainer.train("math")
    assert not (tmp_path / "run").exists()
