"""``Trainer``: what it is told about the agent."""

from __future__ import annotations

import io

import pytest

from agentrl import ConfigError, Trainer, load_config
from agentrl.config import Config
from agentrl.plugins import Plugins
from agentrl.reporting.plain import PlainReporter
from agentrl.training.parts import resolve_executor


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
    assert resolve_executor(config, Plugins()).runs_on_event_loop == (mode == "inline")
    config = load_config(None, "agent=agentrl_agents.math.MathAgnt", f"rollout.mode={mode}", environ={})
    with pytest.raises(ConfigError, match=r"module 'agentrl_agents\.math' has no 'MathAgnt' \(did you mean"):
        resolve_executor(config, Plugins())


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("seed: 1\nreward: nobody\n", 2, "there is no reward 'nobody'"),
        ("seed: 1\nreward: {name: regex,\n  pattern: x,\n  typo: y}\n", 4, "there is no key 'reward.typo'"),
        ("seed: 1\nreward: regex\n", 2, "reward.pattern is missing"),
        ("inference:\n  backend:\n    name: torch\n    threads: many\n", 4, "inference.backend.threads should be"),
        ("algorithm:\n  name: grpo\n  objective:\n    clip_low: -1\n", 4, "algorithm.objective.clip_low should be"),
        ("tasks:\n  train: nowhere.jsonl\n", 2, "cannot read the task file"),
        ("seed: 1\nmodel: nowhere\n", 2, "model 'nowhere' is no bundled model"),
        ("agent:\n  name: nobody\n", 2, "there is no agent 'nobody'"),
        ("scheduler:\n  type: nobody\n", 2, "there is no scheduler 'nobody'"),
        ("trackers:\n  - nobody\n", 1, "there is no tracker 'nobody'"),
        ("rollout:\n  group_size: 2\n  temperature: 0\n", 3, "rollout.temperature=0 samples"),
        ("training:\n  device: tpu\n", 2, "training.device='tpu' is no device"),
    ],
)
def test_what_is_wrong_with_a_key_is_told_with_its_file_and_line(tmp_path, text, line, key):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with trainer(load_config(path, environ={})) as made, pytest.raises(ConfigError) as caught:
        made.check()
    assert str(caught.value).startswith(f"file {path}:{line}: {key}")


def test_an_agent_that_is_given_apart_is_no_line_of_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("agent: math\n")
    with (
        trainer(load_config(path, environ={})) as made,
        pytest.raises(ConfigError, match=r"^there is no agent 'nobody'"),
    ):
        made.check("nobody")
