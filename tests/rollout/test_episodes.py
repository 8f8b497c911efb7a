"""Episodes on the real gateway, engine and model: what each ending becomes, and that nothing else is harmed."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from http.client import HTTPResponse

import httpx
import pytest
from openai import AsyncOpenAI

from agentrl.agents.binding import bind_agent
from agentrl.errors import PolicyError
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.contract import Exchange
from agentrl.inference.contract import BackendContext
from agentrl.inference.engine.backend import TorchBackend
from agentrl.rollout.contract import EpisodeKey
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.inline import InlineRunner
from agentrl.tokens.selection import load_renderer

KEY = EpisodeKey("train", 1, 0, 0)
TASK = {"question": "What is 12 + 30?", "answer": "42"}
SETTINGS = SessionSettings(training=True, max_tokens=12, seed_key=(0, "train", 0, 0, 0))


async def ask(base_url, api_key, http_client, text, **fields):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)
    return await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **fields)


async def answering(data, *, base_url, api_key, http_client):
    await ask(base_url, api_key, http_client, data["question"])
    return 0.5


class Stack:
    """A gateway on the bundled model, and what runs episodes through it."""

    def __init__(self, backend, gateway):
        self.backend, self.gateway = backend, gateway

    def runner(self, agent, *, timeout=30.0, score=None, max_attempts=2):
        bound = bind_agent(agent, {}, name="agent")
        return EpisodeRunner(InlineRunner(bound), self.gateway.open_session, score, timeout, max_attempts)

    async def episode(self, agent, key=KEY, settings=SETTINGS, **options):
        return await self.runner(agent, **options).run_episode(key, TASK, settings)


@pytest.fixture
def run(tiny_folder):
    """Run a scenario, an async function of the stack, to its end."""

    def run(scenario):
        async def main():
            backend = TorchBackend(BackendContext(tiny_folder))
            gateway = Gateway(EngineCompleter(backend, await backend.start(), load_renderer(tiny_folder)))
            try:
                return await scenario(Stack(backend, gateway))
            finally:
                gateway.stop()
                await backend.stop()

        return asyncio.run(main())

    return run


def test_an_episode_keeps_its_calls_its_tokens_and_its_reward(run):
    episode = run(lambda stack: stack.episode(answering))
    (call,) = episode.calls
    assert (episode.outcome, episode.reward, episode.failure) == ("rewarded", 0.5, None)
    sampled = [span for span in episode.tree.spans if span.sampled]
    assert [span.sampled.call for span in sampled] == [call.id]
    assert len(sampled[0].ids) == call.completion_tokens


def test_rewards_of_single_calls_add_up_to_the_episodes(run):
    async def agent(data, *, base_url, api_key, http_client):
        replies = [await ask(base_url, api_key, http_client, text) for text in ("1 + 1", "2 + 2")]
        return {replies[0].id: 0.25, replies[1].id: 1}

    episode = run(lambda stack: stack.episode(agent))
    assert episode.reward == 1.25
    assert list(episode.call_rewards.values()) == [0.25, 1.0]
    assert set(episode.call_rewards) == {call.id for call in episode.calls}


def test_none_is_a_rejection(run):
    async def agent(data):
        return None

    episode = run(lambda stack: stack.episode(agent))
    assert (episode.outcome, episode.reward) == ("rejected", None)


def test_a_reward_function_scores_whatever_the_agent_returns(run):
    async def agent(data):
        return {"answer": data["answer"]}

    async def score(answer, data, view):
        return float(answer["answer"] == data["answer"] and view.key == KEY)

    episode = run(lambda stack: stack.episode(agent, score=score))
    assert (episode.reward, episode.answer) == (1.0, {"answer": "42"})


def test_a_reward_that_never_returns_fails_its_episode_on_its_own_side(run):
    async def hangs(answer, data, view):
        await asyncio.Event().wait()

    episode = run(lambda stack: stack.episode(answering, score=hangs, timeout=2.0))
    assert (episode.outcome, episode.failure.side) == ("failed", "reward")
    assert "did not score the answer 0.5 within 2 s" in episode.failure.reason


def test_a_mistake_of_the_policy_is_worth_nothing_and_no_failure(run):
    async def agent(data, *, base_url, api_key, http_client):
        await ask(base_url, api_key, http_client, data["question"])
        raise PolicyError("it called\na tool that does not exist")

    episode = run(lambda stack: stack.episode(agent))
    assert (episode.outcome, episode.reward, episode.failure) == ("rewarded", 0.0, None)
    assert (episode.mistake, len(episode.calls)) == ("it called a tool that does not exist", 1)


@pytest.mark.parametrize("error", [PolicyError, ValueError])
def test_what_an_agent_says_of_half_a_character_can_be_written_anywhere(run, error):
    async def agent(data):
        raise error("no tool is called add_\ud83d")

    episode = run(lambda stack: stack.episode(agent))
    told = episode.failure or episode
    texts = [told.reason, told.traceback] if episode.failure else [told.mistake]
    for text in texts:
        assert r"add_\ud83d" in text.encode().decode()


def test_a_reward_function_scores_what_was_said_before_a_mistake(run):
    async def agent(data):
        raise PolicyError("the turn limit", answer="42 or so")

    async def score(answer, data, view):
        return 0.25 if answer == "42 or so" else 1.0

    episode = run(lambda stack: stack.episode(agent, score=score))
    assert (episode.outcome, episode.reward, episode.answer) == ("rewarded", 0.25, "42 or so")


def test_an_agent_that_raises_fails_on_its_own_side_and_keeps_what_it_did(run):
    async def agent(data, *, base_url, api_key, http_client):
        await ask(base_url, api_key, http_client, data["question"])
        raise KeyError("tool")

    episode = run(lambda stack: stack.episode(agent))
    assert (episode.outcome, episode.failure.side, episode.attempts) == ("failed", "agent", 1)
    assert "KeyError: 'tool'" in episode.failure.reason
    assert len(episode.calls) == 1


def test_an_engine_that_broke_is_tried_again_with_the_same_tokens_as_a_first_try(run):
    async def scenario(stack):
        generate, broken = stack.backend.generate, iter([True])

        async def flaky(request):
            if next(broken, False):
                from agentrl.errors import BackendError

                raise BackendError("lost the device")
            async for chunk in generate(request):
                yield chunk

        stack.backend.generate = flaky

        async def agent(data, *, base_url, api_key, http_client):
            return await answering(data, base_url=base_url, api_key=api_key, http_client=http_client)

        return await stack.episode(agent), await stack.episode(agent)

    second_try, first_try = run(scenario)
    assert (second_try.attempts, second_try.outcome) == (2, "rewarded")
    assert (first_try.attempts, first_try.outcome) == (1, "rewarded")
    assert [span.ids for span in second_try.tree.spans] == [span.ids for span in first_try.tree.spans]


def test_a_deadline_while_the_model_answers_says_so_and_frees_its_slot(run):
    async def scenario(stack):
        async def silent(request):
            await asyncio.sleep(60)
            yield

        stack.backend.generate, generate = silent, stack.backend.generate
        late = await stack.episode(answering, timeout=0.2)
        stack.backend.generate = generate
        return late, await stack.episode(answering)

    late, next_one = run(scenario)
    assert (late.failure.side, late.attempts) == ("backend", 1)
    assert "waiting for the model, in call 1" in late.failure.reason
    assert next_one.outcome == "rewarded"


def test_equal_keys_sample_equal_tokens_whatever_runs_beside_them(run):
    async def scenario(stack):
        alone = await stack.episode(answering)
        crowd = [
            stack.episode(answering, settings=replace(SETTINGS, seed_key=(0, "train", 0, 0, sample)))
            for sample in (3, 0, 1, 2)
        ]
        return alone, await asyncio.gather(*crowd)

    alone, crowd = run(scenario)
    assert crowd[1].tree.spans[-1].ids == alone.tree.spans[-1].ids
    assert len({episode.tree.spans[-1].ids for episode in crowd}) > 1


def read_answer(client: socket.socket) -> None:
    """Read a whole answer, which comes in as many pieces as the server likes."""
    answer = HTTPResponse(client)
    answer.begin()
    answer.read()


def read_beginning(client: socket.socket) -> None:
    client.recv(10)


@pytest.mark.parametrize("reads", [True, False])
def test_an_episode_knows_which_answers_its_agent_left_unread(run, reads):
    async def agent(data, *, base_url, api_key):
        url = httpx.URL(base_url)
        body = json.dumps({"messages": [{"role": "user", "content": data["question"]}]}).encode()
        head = f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((url.host, url.port), timeout=30) as client:
            await asyncio.to_thread(client.sendall, head.encode() + body)
            await asyncio.to_thread(read_answer if reads else read_beginning, client)
        return 0.5

    async def scenario(stack):
        stack.gateway.start()
        try:
            return await stack.episode(agent)
        finally:
            stack.gateway.stop()

    episode = run(scenario)
    assert episode.reward == 0.5
    assert [call.delivered for call in episode.calls] == [reads]


def test_a_reward_is_shown_no_answer_that_the_agent_never_had(run):
    seen = []

    async def score(answer, data, episode):
        seen.extend(call.delivered for call in episode.calls)
        return 1.0

    async def scenario(stack):
        async def agent(data, *, base_url, api_key, http_client):
            await ask(base_url, api_key, http_client, data["question"])
            body = json.dumps({"messages": [{"role": "user", "content": "And 12 + 31?"}]}).encode()
            reply = await stack.gateway.answer(
                Exchange("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {api_key}"})
            )
            reply.lost()
            return "42"

        return await stack.episode(agent, score=score)

    episode = run(scenario)
    assert seen == [True]
    assert [call.delivered for call in episode.calls] == [True, False]
