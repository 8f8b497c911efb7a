"""Whole runs of agents in worker processes: what they read, what they may be, what they leave behind."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError, PluginError, RunError
from agentrl.plugins import Plugins
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.folder import RunFolder
from agentrl.training.parts import resolve_executor

CERTIFICATES = Path(__file__).parents[1] / "gateway" / "certificates"
BRIEF = ("evaluation.tasks=32", "evaluation.every=0", "training.checkpoint_every=0", "rollout.max_workers=2")

ENVIRONMENT_ONLY = '''
import os
from openai import AsyncOpenAI
from agentrl_agents.math import SYSTEM
from agentrl_agents.tasks import score


async def agent(data):
    """Takes nothing but the task: the SDK itself reads OPENAI_BASE_URL and OPENAI_API_KEY."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": data["question"]}]
    async with AsyncOpenAI() as client:
        reply = await client.chat.completions.create(model="gpt-4o", messages=messages)
    return score(reply.choices[0].message.content, data)
'''

ENCRYPTED = ENVIRONMENT_ONLY.replace("AsyncOpenAI()", "AsyncOpenAI(max_retries=0)").replace(
    "    messages", '    assert os.environ["OPENAI_BASE_URL"].startswith("https://127.0.0.1:")\n    messages'
)

SYNCHRONOUS = '''
from openai import OpenAI
from agentrl_agents.math import SYSTEM
from agentrl_agents.tasks import score

client = OpenAI()  # Older than any episode, as in most people's code.


def agent(data):
    """Blocks, and knows no session."""
    print("asked", data["question"])
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": data["question"]}]
    reply = client.chat.completions.create(model="gpt-4o", messages=messages)
    return score(reply.choices[0].message.content, data)
'''

ANSWERING = """
async def agent(data):
    return data["answer"]


agent.returns_answer = True
"""


@pytest.fixture
def train(tmp_path):
    """Train an agent given as source code, or by name, in workers; returns the run folder and the summary."""

    def train(agent, *settings):
        if "\n" in agent:
            (tmp_path / "mine.py").write_text(agent)
            agent = f"{tmp_path / 'mine.py'}:agent"
        config = load_config(
            None, f"run.dir={tmp_path}", "run.name=run", "rollout.mode=subproc", *BRIEF, *settings, environ={}
        )
        with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
            summary = trainer.train(agent)
        return RunFolder(tmp_path / "run"), summary

    return train


@pytest.mark.parametrize("source", [ENVIRONMENT_ONLY, SYNCHRONOUS], ids=["environment only", "synchronous"])
@pytest.mark.long
def test_an_agent_that_takes_no_connection_learns(train, source):
    folder, summary = train(source, "training.steps=12")
    assert summary.outcome == "completed"
    assert summary.reward_after > summary.reward_before + 0.1
    episodes = list(open_run(folder.path).load_episodes())
    assert {len(episode.calls) for episode in episodes} == {1}
    assert {episode.outcome for episode in episodes} == {"rewarded"}


def test_a_run_samples_in_workers_what_it_samples_inline(train, tmp_path):
    brief = ("training.steps=1", "training.learning_rate=0", "rollout.tasks_per_step=2", "tasks.eval=null")

    def sampled(folder):
        episodes = open_run(folder.path).load_episodes()
        return {str(episode.key): [span.ids for span in episode.tree.spans] for episode in episodes}

    in_workers, _ = train("calculator", *brief)
    config = load_config(None, f"run.dir={tmp_path}", "run.name=inline", *BRIEF, *brief, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train("calculator")
    assert sampled(in_workers) == sampled(RunFolder(tmp_path / "inline"))
    for episode in open_run(in_workers.path).load_episodes():
        arrived = [call.started for call in episode.calls]
        assert arrived == sorted(arrived)
        assert all(0 < call.started < call.started + call.waited < episode.seconds for call in episode.calls)


def test_workers_reach_a_gateway_that_speaks_tls_where_they_trust_its_certificate(train):
    certificate, key = (CERTIFICATES / name for name in ("certificate.pem", "key.pem"))
    brief = ("training.steps=1", "tasks.eval=null", f"gateway.certificate={certificate}")
    brief = (*brief, f"gateway.certificate_key={key}", "rollout.tasks_per_step=2")
    _, summary = train(ENCRYPTED, *brief, f"agent.env=[SSL_CERT_FILE={certificate}]")
    assert (summary.outcome, summary.failed, summary.episodes) == ("completed", 0, 16)
    with pytest.raises(RunError, match=r"APIConnectionError: .*CERTIFICATE_VERIFY_FAILED.*SSL_CERT_FILE, in agent.env"):
        train(ENCRYPTED, *brief, "run.name=untrusting")


def test_what_an_agent_prints_is_in_the_logs_of_the_run(train, capfd):
    folder, _ = train(SYNCHRONOUS, "training.steps=1", "tasks.eval=null")
    logs = [path.read_text() for path in (folder.logs / "workers").glob("worker-*.log")]
    assert sum(text.count("asked What is") for text in logs) == 64
    assert "asked" not in "".join(capfd.readouterr())


def test_an_agents_own_interpreter_runs_it_in_workers_unasked(train):
    settings = (f"agent.python={sys.executable}", "rollout.mode=auto", "training.steps=1", "tasks.eval=null")
    _, summary = train("math", *settings)
    assert summary.outcome == "completed"


def test_an_evaluation_runs_in_workers_too(train, tmp_path):
    folder, summary = train("math", "training.steps=1")
    with Trainer(load_config(folder.config, environ={}), reporter=PlainReporter(io.StringIO())) as trainer:
        again = trainer.evaluate(summary.checkpoint)
    assert (again.sampled, again.greedy) == (summary.reward_after, summary.reward_after_greedy)


def refused(train, error, agent, *settings):
    with pytest.raises(error) as caught:
        train(agent, *settings)
    return str(caught.value)


def test_what_cannot_run_is_refused_before_there_is_a_run_folder(train, tmp_path):
    assert "there is no agent 'mth'" in refused(train, ConfigError, "mth")
    assert "did you mean 'math'" in refused(train, ConfigError, "mth")
    assert "takes no 'turns'" in refused(train, ConfigError, "math", "agent.kwargs.turns=3")
    assert "nowhere/python" in refused(train, PluginError, "math", "agent.python=/nowhere/python")
    assert "returns an answer, and no reward is set" in refused(train, ConfigError, ANSWERING)
    assert "'SECRET', which is not set here" in refused(train, ConfigError, "math", "agent.env=[SECRET]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "disabling", [{"disabled": ["math"]}, {"environ": {"AGENTRL_DISABLE_PLUGINS": "math"}}], ids=str
)
def test_what_is_disabled_here_is_disabled_in_workers(disabling):
    config = load_config(None, "agent.name=math", "rollout.mode=subproc", environ={})
    with pytest.raises(ConfigError, match=r"agent 'math' of agentrl-core .* is left out: disabled"):
        resolve_executor(config, Plugins(**{"environ": {}, **disabling}))


def test_an_object_that_no_other_process_can_find_is_refused(tmp_path):
    class Local:
        async def run(self, data):
            return 1.0

    config = load_config(None, f"run.dir={tmp_path}", "rollout.mode=subproc", environ={})
    with (
        Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer,
        pytest.raises(ConfigError, match="cannot be found by another process"),
    ):
        trainer.train(Local())


FRAMEWORK = '''
from openai import AsyncOpenAI


class Unexpected(Exception):
    """What a framework raises where the policy did not do as it should."""


class Unparsable(Unexpected):
    pass


async def agent(data):
    async with AsyncOpenAI() as client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])
    raise Unparsable("the policy wrote no JSON")
'''


@pytest.mark.parametrize("mode", ["inline", "subproc"])
def test_an_exception_of_its_framework_is_an_outcome_where_the_agent_says_so(train, tmp_path, mode):
    source = (
        FRAMEWORK
        if mode == "subproc"
        else FRAMEWORK.replace("(data)", "(data, *, base_url, api_key)").replace(
            "AsyncOpenAI()", "AsyncOpenAI(base_url=base_url, api_key=api_key)"
        )
    )
    settings = (f"rollout.mode={mode}", "training.steps=1", "tasks.eval=null", "rollout.tasks_per_step=1")
    folder, _ = train(source, *settings, f"agent.outcomes=[{tmp_path / 'mine.py'}:Unexpected]")
    for episode in open_run(folder.path).load_episodes():
        assert (episode.outcome, episode.reward) == ("rewarded", 0.0)
        assert episode.mistake.startswith("Unparsable: the policy wrote no JSON at ")


@pytest.mark.parametrize("mode", ["inline", "subproc"])
def test_an_outcome_that_is_not_there_is_refused_before_there_is_a_run_folder(train, tmp_path, mode):
    settings = (f"rollout.mode={mode}", "agent.outcomes=[json:Unexpected]")
    assert "agent.outcomes: module 'json' has no 'Unexpected'" in refused(train, ConfigError, "math", *settings)
    assert not (tmp_path / "run").exists()
