"""What a call's sampling is seeded with: what it asks, never when."""

from __future__ import annotations

import asyncio
import itertools

import openai
import pytest

from agentrl.inference.contract import Capabilities, Sampling

ASKS = ["What is 12 * 34?", "What is 57 + 28?", "What is 57 + 28?"]
KEY = (0, "eval", 3, 17, 2)


def seeds(connection, backend, session, order, **request):
    """The seed of each asked question, asked in ``order``."""
    del backend.requests[:]
    backend.says(*["Done."] * len(order))

    async def agent():
        async with connection.client(session) as client:
            for ask in order:
                messages = [{"role": "user", "content": ask}]
                await client.chat.completions.create(model="x", messages=messages, **request)

    asyncio.run(agent())
    return sorted((order[n], each.sampling.seed) for n, each in enumerate(backend.requests))


def test_the_order_of_calls_does_not_matter(in_process, backend, open_session):
    found = [seeds(in_process, backend, open_session(seed_key=KEY), order) for order in itertools.permutations(ASKS)]
    assert all(each == found[0] for each in found)
    assert len({seed for _, seed in found[0]}) == 3


def test_in_process_and_over_http_the_seeds_are_the_same(in_process, http, backend, open_session):
    here = seeds(in_process, backend, open_session(seed_key=KEY), ASKS)
    assert here == seeds(http, backend, open_session(seed_key=KEY), ASKS)


@pytest.mark.parametrize("other", [(1, "eval", 3, 17, 2), (0, "train", 3, 17, 2), (0, "eval", 3, 17, 3), ()])
def test_another_episode_draws_other_numbers(in_process, backend, open_session, other):
    one = seeds(in_process, backend, open_session(seed_key=KEY), ASKS)
    two = seeds(in_process, backend, open_session(seed_key=other), ASKS)
    assert not {seed for _, seed in one} & {seed for _, seed in two}


def test_what_does_not_touch_sampling_does_not_touch_the_seed(in_process, backend, open_session):
    plain = seeds(in_process, backend, open_session(seed_key=KEY), ASKS)
    assert plain == seeds(in_process, backend, open_session(seed_key=KEY), ASKS, user="someone", logprobs=True)
    assert plain != seeds(in_process, backend, open_session(seed_key=KEY), ASKS, temperature=0.5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", [42, 0, -1, 2**70])
def test_an_agents_own_seed_is_another_one_in_every_episode(in_process, backend, open_session, training, seed):
    """Else a group would be one episode eight times."""
    episodes = [(0, phase, 3, task, sample) for phase in ("train", "eval") for task in (0, 1) for sample in range(8)]
    drawn = [
        seeds(in_process, backend, open_session(seed_key=key, training=training), ASKS[:1], seed=seed)[0][1]
        for key in episodes
    ]
    assert len(set(drawn)) == len(episodes)
    assert all(0 <= number < 2**63 for number in drawn)


def test_an_agents_own_seed_repeats_within_its_episode_and_with_it(in_process, backend, open_session):
    found = seeds(in_process, backend, open_session(seed_key=KEY), ASKS, seed=42)
    assert found == seeds(in_process, backend, open_session(seed_key=KEY), ASKS, seed=42)
    assert len({seed for ask, seed in found if ask == ASKS[1]}) == 1, "the same request under the same seed"
    assert {seed for _, seed in found}.isdisjoint(
        seed for _, seed in seeds(in_process, backend, open_session(seed_key=KEY), ASKS, seed=43)
    )


def test_a_seed_of_rollout_override_is_another_one_in_every_episode(in_process, backend, open_session):
    found = [
        seeds(in_process, backend, open_session(seed_key=(0, "train", 0, 0, n), override={"seed": 1}), ASKS[:1])
        for n in range(8)
    ]
    assert len({seed for ((_, seed),) in found}) == 8


@pytest.mark.parametrize("seed", ["42", 1.5, True])
def test_a_seed_that_is_no_whole_number_is_refused(in_process, backend, open_session, seed):
    with pytest.raises(openai.BadRequestError, match=r"seed=.* is not a whole number"):
        seeds(in_process, backend, open_session(), ASKS[:1], seed=seed)


def test_a_backend_without_seeds_is_sent_none(served, in_process, backend, open_session, monkeypatch):
    monkeypatch.setattr(served.completer, "capabilities", Capabilities(512, 8, sampling=frozenset({"temperature"})))
    found = seeds(in_process, backend, open_session(seed_key=KEY), ASKS)
    assert {seed for _, seed in found} == {Sampling().seed}


def test_a_temperature_beyond_the_backends_is_refused_by_name(served, in_process, backend, open_session, monkeypatch):
    monkeypatch.setattr(served.completer, "capabilities", Capabilities(512, 8, temperatures=(0.01, 2.0)))
    with pytest.raises(openai.BadRequestError, match=r"temperature=0\.005 .* samples at 0, and from 0\.01 to 2"):
        seeds(in_process, backend, open_session(seed_key=KEY), ASKS, temperature=0.005)


def test_ids_of_tool_calls_repeat_with_the_seed(in_process, backend, open_session):
    """Some templates write them into the prompt, and an evaluation is to repeat exactly."""
    tools = [{"type": "function", "function": {"name": "calculate", "parameters": {}}}]

    async def agent(session):
        async with in_process.client(session) as client:
            messages = [{"role": "user", "content": "What is 12 * 34?"}]
            completion = await client.chat.completions.create(model="x", messages=messages, tools=tools)
            return completion.choices[0].message.tool_calls[0].id

    call = '<tool_call>\n{"name": "calculate", "arguments": {}}\n</tool_call>'
    backend.says(call, call, call)
    first, second = open_session(seed_key=KEY), open_session(seed_key=KEY)
    ids = [asyncio.run(agent(first)), asyncio.run(agent(first)), asyncio.run(agent(second))]
    assert ids[0] == ids[2] != ids[1]
