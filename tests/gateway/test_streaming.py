"""Streamed answers: told while they are sampled, recorded like whole ones, and of no effect where nobody had them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import httpx2
import openai
import pytest
from tests.gateway.conftest import CONTEXT, Connection

from agentrl.errors import BackendError
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest

ASK = [{"role": "user", "content": "What is 12 * 34?"}]
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"n": 12}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]


class SteppedBackend:
    """Says its script token by token, each one when it is allowed to."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.allowed = 0
        self.requests: list[GenerationRequest] = []
        self.cancelled = 0
        self.fails = False
        self.given = 0
        self.stop: str | None = None
        """The stop string that the last token completes."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        try:
            for number, token in enumerate(self.ids, 1):
                while self.allowed < number:  # noqa: ASYNC110  # It may be allowed from another thread.
                    await asyncio.sleep(0.001)
                if self.fails and number == len(self.ids):
                    raise BackendError("the engine broke")
                finish = "stop" if number == len(self.ids) else None
                self.given = number
                yield Chunk((token,), (-0.5,), (0,), finish=finish, stop_string=self.stop if finish else None)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


@pytest.fixture
def stepped(renderer):
    """A gateway before a backend that is told when to go on, and a session of it."""
    gateways = []

    def stepped(text: str):
        vocabulary = renderer.vocabulary
        backend = SteppedBackend([*vocabulary.encode(text), vocabulary.convert_tokens_to_ids("<|im_end|>")])
        gateway = Gateway(EngineCompleter(backend, Capabilities(CONTEXT, 8), renderer))
        gateway.start()
        gateways.append(gateway)
        return gateway, backend, gateway.open_session(SessionSettings(training=True))

    yield stepped
    for gateway in gateways:
        gateway.stop()


def test_a_stream_comes_to_the_message_that_is_recorded(connection, open_session, backend):
    backend.says(f"Let me see.\n{CALL}")
    session = open_session()

    async def run():
        async with connection.client(session) as client:
            stream = await client.chat.completions.create(
                model="any", messages=ASK, tools=TOOLS, stream=True, stream_options={"include_usage": True}
            )
            return [chunk async for chunk in stream]

    chunks = asyncio.run(run())
    (call,) = session.calls
    assert {chunk.id for chunk in chunks} == {call.id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == call.message["content"]
    calls = [each for delta in deltas for each in delta.tool_calls or ()]
    (made,) = call.message["tool_calls"]
    assert (calls[0].id, calls[0].type, calls[0].function.name) == (made["id"], "function", "calculate")
    assert {each.index for each in calls} == {0}
    assert "".join(each.function.arguments for each in calls) == made["function"]["arguments"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    *_, last = chunks
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (call.prompt_tokens, call.completion_tokens)
    assert call.delivered


def test_a_stream_and_a_whole_answer_record_the_same(connection, open_session, backend):
    trees = []
    for stream in (False, True):
        backend.says("It is 408.")
        session = open_session()

        async def run(session=session, stream=stream):
            async with connection.client(session) as client:
                answer = await client.chat.completions.create(model="any", messages=ASK, stream=stream)
                if stream:
                    async for _ in answer:
                        pass

        asyncio.run(run())
        (call,) = session.calls
        trees.append([(span.ids, span.sampled and span.sampled.logprobs) for span in session.tree.spans])
        assert (call.message["content"], call.finish_reason) == ("It is 408.", "stop")
    assert trees[0] == trees[1]


def test_choices_are_sampled_apart_and_each_is_a_call(connection, open_session, backend):
    session = open_session()
    for stream in (False, True):
        backend.says("It is 408.", "It is 407.", "It is 408.")

        async def run(stream=stream):
            async with connection.client(session) as client:
                answer = await client.chat.completions.create(model="any", messages=ASK, n=3, stream=stream)
                if not stream:
                    return answer.id, [choice.message.content for choice in answer.choices]
                texts, name = ["", "", ""], ""
                async for chunk in answer:
                    name = chunk.id
                    for choice in chunk.choices:
                        texts[choice.index] += choice.delta.content or ""
                return name, texts

        name, texts = asyncio.run(run())
        assert sorted(texts) == ["It is 407.", "It is 408.", "It is 408."]
        calls = session.calls[-3:]
        assert {call.id for call in calls} == {name, f"{name}-1", f"{name}-2"}
        assert all(call.delivered for call in calls)
    assert len([span for span in session.tree.spans if span.sampled]) == 6


@pytest.mark.parametrize("way", ["in process", "HTTP"])
def test_the_first_event_leaves_with_the_first_token(stepped, way):
    gateway, backend, session = stepped("It is 408.")

    async def run():
        async with Connection(gateway, httpx2, way == "in process").client(session) as client:
            backend.allowed += 1
            stream = await client.chat.completions.create(model="any", messages=ASK, stream=True)
            first = await anext(aiter(stream))
            assert session.in_flight == 1
            backend.allowed += 100
            async for _ in stream:
                pass
            return first

    assert asyncio.run(run()).choices[0].delta.role == "assistant"
    assert session.in_flight == 0
    assert backend.requests[0].stream


@pytest.mark.parametrize("way", ["in process", "HTTP"])
def test_all_that_is_said_leaves_before_the_turn_ends(stepped, way):
    gateway, backend, session = stepped(f"<think>\nMultiply.\n</think>\n\nLet me see.\n{CALL}")

    async def run():
        async with Connection(gateway, httpx2, way == "in process").client(session) as client, asyncio.timeout(60):
            backend.allowed += 4
            stream = await client.chat.completions.create(model="any", messages=ASK, tools=TOOLS, stream=True)
            told = {"reasoning_content": "", "content": "", "arguments": ""}
            async for chunk in stream:
                delta = chunk.choices[0].delta
                told["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
                told["content"] += delta.content or ""
                told["arguments"] += "".join(call.function.arguments for call in delta.tool_calls or ())
                if told["reasoning_content"]:
                    backend.allowed = max(backend.allowed, len(backend.ids) - 1)
                if told["arguments"] == '{"n": 12}' and backend.allowed < len(backend.ids):
                    assert session.in_flight == 1
                    backend.allowed += 1
            return told

    told = asyncio.run(run())
    assert told == {"reasoning_content": "Multiply.", "content": "Let me see.", "arguments": '{"n": 12}'}
    (call,) = session.calls
    assert call.message["tool_calls"][0]["function"]["arguments"] == told["arguments"]


@pytest.mark.parametrize("stop", ["408", "08.", "me se", "\n"])
def test_nothing_of_a_stop_string_is_told(stepped, stop):
    gateway, backend, session = stepped("Let me see.\nIt is 408. So.")
    decode = gateway.completer.renderer.vocabulary.decode
    end = next(n for n in range(len(backend.ids)) if stop in decode(backend.ids[:n]))
    backend.ids, backend.stop, backend.allowed = backend.ids[:end], stop, end

    async def run():
        async with Connection(gateway, httpx2, in_process=True).client(session) as client:
            stream = await client.chat.completions.create(model="any", messages=ASK, stop=[stop], stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    told = asyncio.run(run())
    (call,) = session.calls
    assert told == call.message["content"] == "Let me see.\nIt is 408. So.".partition(stop)[0].strip()


async def ended(session: Session) -> None:
    while session.in_flight:  # noqa: ASYNC110  # The call may be in another loop.
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("way", ["in process", "HTTP"])
def test_a_client_that_leaves_midway_ends_the_call_and_nothing_of_it_is_delivered(stepped, way):
    gateway, backend, session = stepped("It is 408.")

    async def run():
        async with Connection(gateway, httpx2, way == "in process").client(session) as client:
            backend.allowed += 3
            async with await client.chat.completions.create(model="any", messages=ASK, stream=True) as stream:
                await anext(aiter(stream))
            await ended(session)

    asyncio.run(run())
    assert backend.cancelled == 1
    (call,) = session.calls
    assert (call.finish_reason, call.delivered) == ("cancelled", False)
    assert 1 <= call.completion_tokens <= 3


def test_what_a_client_kept_of_a_stream_that_it_left_is_continued(stepped):
    gateway, backend, session = stepped("It is")

    async def run():
        async with Connection(gateway, httpx2, in_process=True).client(session) as client:
            backend.allowed += len(backend.ids) - 1  # All but its end.
            async with await client.chat.completions.create(model="any", messages=ASK, stream=True) as stream:
                await anext(aiter(stream))
                while backend.given < len(backend.ids) - 1:  # noqa: ASYNC110  # It counts in this loop, a turn a token.
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.01)
            await ended(session)
            backend.allowed += 100
            history = [*ASK, {"role": "assistant", "content": "It is"}, {"role": "user", "content": "Go on."}]
            await client.chat.completions.create(model="any", messages=history)

    asyncio.run(run())
    first, second = session.calls
    assert (first.message["content"], first.delivered, second.parent) == ("It is", False, first.id)


def test_an_answer_that_breaks_off_is_told_in_the_stream(stepped):
    gateway, backend, session = stepped("It is 408.")
    backend.fails = True

    async def run():
        async with Connection(gateway, httpx2, in_process=True).client(session, max_retries=0) as client:
            backend.allowed += 1
            stream = await client.chat.completions.create(model="any", messages=ASK, stream=True)
            backend.allowed += 100
            with pytest.raises(openai.APIError, match="the engine broke"):
                async for _ in stream:
                    pass

    asyncio.run(run())
    assert not session.calls
    assert [str(error) for error in session.refusals] == ["the engine broke"]
