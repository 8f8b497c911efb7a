"""The backend ``openai``: what the bundled agents are worth with a model behind an endpoint.

The endpoint is a gateway of our own before the torch engine, over HTTP, so that its model is known.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError, PluginError
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.inference.contract import BackendContext
from agentrl.inference.engine.backend import TorchBackend
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Episode
from agentrl.tokens.selection import load_renderer
from agentrl.training import trainer as trainer_module

KEY = "THE_KEY_OF_A_TEST"
TASKS = 16
BRIEF = (f"evaluation.tasks={TASKS}",)


@pytest.fixture(scope="module")
def endpoint(tiny_folder) -> Iterator[Session]:
    """An endpoint that serves ``tiny``; what it was asked is in its ``calls``."""
    engine = TorchBackend(BackendContext(tiny_folder))
    capabilities = asyncio.run(engine.start())
    gateway = Gateway(EngineCompleter(engine, capabilities, load_renderer(tiny_folder)))
    gateway.start()
    yield gateway.open_session(SessionSettings(training=False, model="tiny-at-home"))
    gateway.stop()
    asyncio.run(engine.stop())


@pytest.fixture
def evaluate(endpoint, monkeypatch):
    """Evaluate an agent at the endpoint."""
    monkeypatch.setenv(KEY, endpoint.api_key)

    def evaluate(agent, *settings, reporter=None):
        backend = (f"inference.backend={{name: openai, url: {endpoint.base_url}, api_key_env: {KEY}, model: home}}",)
        config = load_config(None, *backend, *BRIEF, *settings, environ={})
        with Trainer(config, reporter=reporter or PlainReporter(io.StringIO())) as trainer:
            return trainer.evaluate(agent=agent)

    return evaluate


class Listening(PlainReporter):
    """Remembers the episodes, and what it was told."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.episodes: list[Episode] = []
        self.warnings: list[str] = []

    def episode_finished(self, episode):
        self.episodes.append(episode)

    def warning(self, text):
        self.warnings.append(text)

    def greedy(self) -> dict[int, tuple[float, list[str]]]:
        """Reward and conversation of each task of the greedy reading."""
        return {
            episode.key.task: (episode.reward, [_said(call) for call in episode.calls])
            for episode in self.episodes
            if episode.key.phase == "eval-greedy"
        }


def _said(call) -> tuple[str | None, list[str], str, int, int]:
    calls = [made["function"]["arguments"] for made in call.message.get("tool_calls") or ()]
    return call.message.get("content"), calls, call.finish_reason, call.prompt_tokens, call.completion_tokens


async def measures_itself(data, *, base_url, api_key, http_client):
    """Its reward tells apart what the bundled agents' call equally wrong."""
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": data["question"]}]
    reply = await client.chat.completions.create(model="gpt-4o", messages=messages)
    return sum(map(ord, reply.choices[0].message.content)) / 1000


@pytest.mark.parametrize("agent", ["math", "calculator", "multi_turn_math", measures_itself])
def test_a_greedy_reading_at_an_endpoint_is_that_of_the_engine_behind_it(evaluate, agent):
    listening = Listening(), Listening()
    with Trainer(load_config(None, *BRIEF, environ={}), reporter=listening[0]) as trainer:
        here = trainer.evaluate(agent=agent)
    there = evaluate(agent, reporter=listening[1])
    assert listening[1].greedy() == listening[0].greedy()
    assert there.greedy == here.greedy
    assert there.sampled == pytest.approx(here.sampled, abs=0.5)
    assert (there.step, there.episodes, there.failed, there.rejected) == (0, 2 * TASKS, 0, 0)


def test_an_episode_records_messages_and_usage_and_no_tokens(evaluate):
    listening = Listening()
    measured = evaluate("calculator", reporter=listening)
    assert all(episode.calls and not len(episode.tree) for episode in listening.episodes)
    for episode in listening.episodes:
        first, *later = episode.calls
        assert first.parent is None
        assert first.request["tools"][0]["function"]["name"] == "calculator"
        assert first.prompt_tokens > 10
        assert first.completion_tokens > 0
        assert [call.parent for call in later] == [call.id for call in episode.calls[:-1]]
    assert any(len(episode.calls) > 1 for episode in listening.episodes)
    assert list(open_run(measured.folder).load_episodes()) == listening.episodes
    calls, question = [call for episode in listening.episodes for call in episode.calls], 1
    policy = measured.cost["evaluation"]["policy"]
    assert policy["requests"] == len(calls) + question
    assert policy["prompt_tokens"] > sum(call.prompt_tokens for call in calls)
    assert open_run(measured.folder).cost.usage("policy").requests == policy["requests"]


def test_a_limit_that_cuts_many_completions_is_told(evaluate):
    listening = Listening()
    evaluate("math", "rollout.max_tokens=1", "evaluation.tasks=2", reporter=listening)
    assert listening.warnings == [
        "4 of 4 completions were cut at their limit of tokens "
        "(raise rollout.max_tokens=1; models may think before they answer)"
    ]


def test_an_agent_in_a_process_of_its_own_sees_its_session_and_not_the_key(evaluate, endpoint, tmp_path):
    (tmp_path / "peeks.py").write_text(PEEKS)
    listening = Listening()
    settings = ("rollout.mode=subproc", "rollout.max_workers=1", "evaluation.tasks=2", "reward=exact-match")
    evaluate(f"{tmp_path}/peeks.py:peeks", *settings, reporter=listening)
    seen = [episode.answer for episode in listening.episodes]
    assert len(seen) == 4
    assert all("sk-agentrl-" in answer and "127.0.0.1" in answer for answer in seen)
    assert not any(endpoint.api_key in answer or endpoint.base_url in answer for answer in seen)


PEEKS = """
import os
from openai import OpenAI

def peeks(data):
    OpenAI().chat.completions.create(model="any", messages=[{"role": "user", "content": data["question"]}])
    return repr(dict(os.environ))
"""


def test_a_script_may_name_another_model_of_the_endpoint(evaluate, endpoint, monkeypatch):
    config = load_config(None, "inference.backend.name=openai", "inference.backend.model=a", *BRIEF, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        monkeypatch.setattr(trainer_module, "measure_endpoint", _model_of)
        assert trainer.evaluate(agent="math") == "a"
        assert trainer.evaluate("b", agent="math") == "b"


async def _model_of(parts, _reporter):
    return parts.config.model.name


FACTORY = """
class Chats:
    async def start(self): ...
    async def stop(self): ...
    async def complete(self, request): ...

def make(context):
    return Chats()
"""


def test_a_function_that_makes_a_chat_backend_is_told_to_be_the_class(tmp_path):
    (tmp_path / "chats.py").write_text(FACTORY)
    config = load_config(None, f"inference.backend={tmp_path}/chats.py:make", *BRIEF, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        for start in (trainer.evaluate, trainer.check):
            with pytest.raises(PluginError, match=r"function that makes a chat backend, Chats.*register the class"):
                start(agent="math")


def test_training_is_refused_before_anything_starts(evaluate, endpoint, tmp_path):
    asked = len(endpoint.calls)
    config = load_config(None, "inference.backend=openai", "model=gpt-4o", f"run.dir={tmp_path}/runs", environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        for start in (trainer.train, trainer.check):
            with pytest.raises(ConfigError, match=r"backend='openai' cannot be trained: it takes no.*agentrl eval"):
                start(agent="math")
    assert len(endpoint.calls) == asked
    assert not (tmp_path / "runs").exists()
