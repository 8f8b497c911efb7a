"""What a scheduler is given, and what it may choose."""

from __future__ import annotations

from agentrl.config.loader import load_config
from agentrl.plugins import Plugins
from agentrl.rollout.executors import build_executor
from agentrl.training.schedulers import build_scheduler

SCHEDULER = """
class Told:
    def __init__(self, config, reporter, shared, floors=1):
        self.given = config, reporter, shared, floors

    @staticmethod
    def executor(config):
        return "subproc" if config.scheduler.options.get("floors") == 2 else None

    def run(self, train):
        return train()
"""


def test_a_scheduler_is_given_what_its_signature_takes(tmp_path):
    (tmp_path / "told.py").write_text(SCHEDULER)
    (tmp_path / "agent.py").write_text("def agent(data): return 1.0")
    config = load_config(
        None,
        f"scheduler={{type: {tmp_path}/told.py:Told, floors: 3}}",
        f"run.dir={tmp_path}/runs",
        f"agent={tmp_path}/agent.py:agent",
    )
    reporter = object()
    scheduler = build_scheduler(Plugins(), config, reporter, tmp_path / "model")
    shared = {"run.dir": tmp_path / "runs", "model.name": tmp_path / "model", "agent.name": tmp_path / "agent.py"}
    assert scheduler.given == (config, reporter, shared, 3)
    [*_, of_a_name, _] = build_scheduler(Plugins(), config.naming("agent", "math"), reporter, tmp_path / "model").given
    assert set(of_a_name) == {"run.dir", "model.name"}


def test_a_scheduler_may_say_what_auto_means(tmp_path):
    (tmp_path / "told.py").write_text(SCHEDULER)

    def chosen(*settings):
        return type(build_executor(load_config(None, *settings), Plugins())).__name__

    assert chosen(f"scheduler={{type: {tmp_path}/told.py:Told, floors: 2}}") == "SubprocExecutor"
    assert chosen(f"scheduler={{type: {tmp_path}/told.py:Told, floors: 1}}") == "InlineExecutor"
    assert chosen(f"scheduler={{type: {tmp_path}/told.py:Told, floors: 2}}", "rollout.mode=inline") == "InlineExecutor"
