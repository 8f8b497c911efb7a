"""Executors are named by ``rollout.mode``: those of core, and any that a distribution registers."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.plugins.installing import install

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.inline import InlineExecutor
from agentrl.rollout.subproc.executor import SubprocExecutor
from agentrl.training.parts import resolve_executor

PAIRED = '''
"""An executor that runs two episodes at once, whatever the run's concurrency."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator

from agentrl.errors import EpisodeTimeout
from agentrl.rollout.contract import AgentFacts, AgentRunner, AgentSpec, ExecutorContext


class Paired:
    runs_on_event_loop = True

    def __init__(self, agent: AgentSpec, label: str = "") -> None:
        self.spec, self.label = agent, label

    async def inspect(self) -> AgentFacts:
        self.agent = self.spec.load()
        return AgentFacts(self.agent.is_async, self.agent.returns_answer)

    @contextlib.asynccontextmanager
    async def running(self, context: ExecutorContext) -> AsyncIterator[AgentRunner]:
        self.slots, self.now, self.most = asyncio.Semaphore(2), 0, 0
        yield self
        context.warn(f"{self.label} ran {self.spec.name}, {self.most} of {context.concurrency} at once")

    async def run(self, data, connection, *, deadline_s, activity, alone=False):
        async with self.slots:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                async with asyncio.timeout(deadline_s):
                    return await self.agent.call(copy.deepcopy(data), connection)
            except TimeoutError:
                raise EpisodeTimeout(f"it was {activity().words}") from None
            finally:
                self.now -= 1
'''
BRIEF = ("training.steps=1", "tasks.eval=null", "rollout.tasks_per_step=2", "training.checkpoint_every=0")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution that registers the executor ``paired``, on ``sys.path``."""
    site = tmp_path / "site"
    entries = {"agentrl.executors": {"paired": "paired_executor:Paired"}}
    install(site, "agentrl-paired", entries, files={"paired_executor.py": PAIRED})
    monkeypatch.syspath_prepend(str(site))
    return site


def configured(tmp_path: Path, *settings: str):
    return load_config(None, f"run.dir={tmp_path}", "run.name=run", *BRIEF, *settings, environ={})


def test_an_executor_of_another_distribution_runs_the_agents_of_a_training(installed, tmp_path):
    told = io.StringIO()
    config = configured(tmp_path, "rollout.mode={name: paired, label: Loom}")
    with Trainer(config, reporter=PlainReporter(told)) as trainer:
        summary = trainer.train("math")
    assert summary.outcome == "completed"
    assert summary.steps == 1
    episodes = list(open_run(tmp_path / "run").load_episodes())
    assert len(episodes) == 16
    assert {episode.outcome for episode in episodes} == {"rewarded"}
    assert all(episode.calls and episode.trained_step == 1 for episode in episodes)
    assert "Loom ran math, 2 of 64 at once" in told.getvalue()


def test_what_loading_the_agent_refuses_is_said_before_there_is_a_run_folder(installed, tmp_path):
    config = configured(tmp_path, "rollout.mode=paired", "agent.kwargs.turns=3")
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer, pytest.raises(ConfigError, match="'turns'"):
        trainer.train("math")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("pired", "there is no executor 'pired' .did you mean 'paired'"),
        ("inlin", "there is no executor 'inlin' .did you mean 'inline'"),
        ("{name: paired, labl: x}", "there is no key 'rollout.mode.labl' .did you mean 'label'"),
        ("{name: inline, label: x}", "there is no key 'rollout.mode.label'"),
    ],
)
def test_an_unknown_executor_or_key_is_named_with_what_is_near(installed, tmp_path, mode, said):
    with pytest.raises(ConfigError, match=said):
        resolve_executor(configured(tmp_path, f"rollout.mode={mode}"), Plugins())


def test_an_executor_that_does_not_import_is_its_plugins_fault(tmp_path, monkeypatch):
    install(tmp_path / "site", "agentrl-broken", {"agentrl.executors": {"broken": "no_such_module:Executor"}})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(PluginError, match="no_such_module"):
        resolve_executor(configured(tmp_path, "rollout.mode=broken"), Plugins())


@pytest.mark.parametrize(
    ("settings", "executor", "in_workers"),
    [
        ((), InlineExecutor, False),
        ((f"agent.python={sys.executable}",), SubprocExecutor, True),
        (("rollout.mode=inline",), InlineExecutor, False),
        (("rollout.mode=subproc",), SubprocExecutor, True),
    ],
)
def test_auto_runs_inline_but_for_an_agent_with_an_interpreter_of_its_own(tmp_path, settings, executor, in_workers):
    config = configured(tmp_path, *settings)
    made = resolve_executor(config, Plugins())
    assert isinstance(made, executor)
    assert made.runs_on_event_loop is not in_workers
    assert config.runs_in_workers is in_workers


def test_executors_are_listed_among_what_is_installed(installed):
    agentrl = Path(sys.executable).with_name("agentrl")
    env = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    listed = subprocess.run([agentrl, "plugins"], capture_output=True, text=True, env=env, timeout=60).stdout
    assert re.search(r"executors +auto, inline, subproc", listed)
    assert "executors  paired" in listed
