"""``Trainer``: what it is told about the agent."""

from __future__ import annotations

import io

import pytest

from agentrl import ConfigError, Trainer, load_config
from agentrl.config import Config
from agentrl.plugins import Plugins
from agentrl.reporting.plain import PlainReporter
from agentrl.training.agent import resolve_agent


def trainer(config: Config) -> Trainer:
    return Trainer(config, reporter=PlainReporter(io.StringIO()))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_workflow_is_another_name_of_agent():
    refused = r"there is no agent 'nobody' .*"
    with trainer(load_config(None, environ={})) as made:
        for name in ("agent", "workflow"):
            with pytest.raises(ConfigError, match=refused):
                made.train(**{name: "nobody"})
            with pytest.raises(ConfigError, match=refused):
                made.check(**{name: "nobody"})
            with pytest.raises(ConfigError, match=refused):
                made.evaluate(**{name: "nobody"})
        made.check(workflow="agentrl_agents.math.MathAgent")


def test_an_agent_under_both_names_is_refused():
    with trainer(load_config(None, environ={})) as made:
        for call in (made.train, made.check, made.evaluate):
            with pytest.raises(ConfigError, match=r"named twice, as `agent` and as `workflow`.* \(pass one of them\)$"):
                call(agent="math", workflow="math")


@pytest.mark.parametrize("mode", ["inline", "subproc"])
def test_an_agent_is_found_by_its_dotted_path_where_it_runs(mode):
    config = load_config(None, "agent=agentrl_agents.math.MathAgent", f"rollout.mode={mode}", environ={})
    assert not resolve_agent(config, Plugins()).returns_answer
    config = load_config(None, "agent=agentrl_agents.math.MathAgnt", f"rollout.mode={mode}", environ={})
    with pytest.raises(ConfigError, match=r"module 'agentrl_agents\.math' has no 'MathAgnt' \(did you mean"):
        resolve_agent(config, Plugins())
