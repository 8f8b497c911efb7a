"""The part of a dialect's suite about answers that are written while they are sampled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from agentrl.errors import GatewayError
from agentrl.gateway.contract import CallDelta, Completion, Delta, Event, ModelRequest, Tokens
from agentrl.gateway.streaming import merged
from agentrl.testing.dialects.answers import messages_for
from agentrl.testing.dialects.bench import SAID, Bench, DialectSuite, Parsed, completion_of, shown, whole

__all__ = ["Streams"]

_CUTS = 2
"""How many cuttings at random are tried of each answer."""
_DEADLINE_S = 60.0
_BROKE = "the engine broke"


@dataclass
class Told:
    """What was written of a stream of events, and when."""

    parts: list[bytes] = field(default_factory=list)
    taken: int = 0
    """Events that were taken so far."""
    first_at: int = 0
    """Events that had been taken when the first part came."""
    after: int = 0
    """Parts that came once the last completion had been taken."""
    ended: bool = False
    """Whether the last completion has been taken."""

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)


class Streams(DialectSuite):
    """Tests of streamed answers, for a protocol that ``streams``."""

    def test_a_stream_is_asked_for_and_only_then_given(self, bench: Bench) -> None:
        for parsed in self._parsed(bench):
            assert all(each.stream for each in parsed.asked), f"{shown(parsed.request.body)} is read as no stream"

    def test_a_stream_comes_to_the_whole_answer_however_it_is_cut(self, bench: Bench) -> None:
        for parsed in self._parsed(bench):
            for message in messages_for(parsed.asked[0]):
                for finish_reason in ("stop", "length"):
                    self._same(bench, parsed, message, finish_reason)

    def test_a_stream_is_told_while_it_is_sampled(self, bench: Bench) -> None:
        for parsed in self._parsed(bench):
            events = _events(parsed.asked, {"content": "Fourhundredeight"}, "stop", None)
            told = _told(bench, parsed, events)
            assert told.first_at <= 2 * len(parsed.asked), (
                f"its first part came when {told.first_at} of {len(events)} events had been taken: it holds back"
            )

    def test_exactly_one_part_follows_the_last_completion(self, bench: Bench) -> None:
        for parsed in self._parsed(bench):
            for message in messages_for(parsed.asked[0]):
                told = _told(bench, parsed, _events(parsed.asked, message, "stop", None))
                assert told.after == 1, (
                    f"{told.after} parts follow the last completion, and with exactly one the answer has arrived"
                )

    def test_a_stream_that_breaks_off_says_why_and_ends(self, bench: Bench) -> None:
        for parsed in self._parsed(bench):
            events = _events(parsed.asked, {"content": SAID}, "stop", None)
            for taken in (1, 3):
                told = _told(bench, parsed, events[:taken], breaks=True)
                assert _BROKE.encode() in told.body, f"it does not say that {_BROKE}: {told.body[-200:]!r}"

    def test_a_stream_is_recorded_and_delivered(self, bench: Bench) -> None:
        for parsed in self._parsed(bench):
            with bench.session(training=False) as (session, ask):
                response = ask(parsed.request.body)
                assert response.status_code < 300, f"{response.status_code} {response.text}"
                assert len(session.calls) == len(parsed.asked)
                assert all(call.delivered for call in session.calls), "the client has all, and that is not known"

    def _parsed(self, bench: Bench) -> Sequence[Parsed]:
        if not self.streams:
            pytest.skip("it does not stream: `streams` is false")
        return [bench.parsed(self.as_stream(body)) for body in self.asks]

    def _same(self, bench: Bench, parsed: Parsed, message: Mapping[str, Any], finish_reason: str) -> None:
        completions = [
            completion_of(each, message, finish_reason, choice=choice) for choice, each in enumerate(parsed.asked)
        ]
        expected = self.read(
            whole(bench.dialect.respond(_fresh(bench, parsed), parsed.asked, completions)), streamed=False
        )
        for cut in (None, -1, *range(_CUTS)):
            told = _told(bench, parsed, _events(parsed.asked, message, finish_reason, cut))
            read = self.read(told.body, streamed=True)
            assert read == expected, (
                f"streamed it is read as\n  {read!r}\nand whole as\n  {expected!r}\nwritten were\n  {told.parts!r}"
            )


def _fresh(bench: Bench, parsed: Parsed) -> Any:
    """The request with nothing in its memory, and with the handles that completions have."""
    return replace(parsed.request, memory={}, handle=lambda call: f"handle-{call}")


def _told(bench: Bench, parsed: Parsed, events: Sequence[Event], *, breaks: bool = False) -> Told:
    """What the dialect writes of ``events``."""
    told = Told()

    async def happening() -> AsyncIterator[Event]:
        last = len(events)
        for event in events:
            told.taken += 1
            told.ended = not breaks and told.taken == last
            yield event
        if breaks:
            raise GatewayError(_BROKE, status=503, code="backend_error")

    async def read() -> None:
        reply = bench.dialect.stream(_fresh(bench, parsed), parsed.asked, happening())
        assert 200 <= reply.status < 300, f"a stream has the status {reply.status}"
        assert isinstance(reply.body, AsyncIterator), "the body of a stream is to be an asynchronous iterator"
        async with asyncio.timeout(_DEADLINE_S):
            async for part in reply.body:
                assert isinstance(part, bytes), f"a part of a stream is to be bytes, not {type(part).__name__}"
                assert part, "a part of a stream is empty, by which clients may take it to have ended"
                told.first_at = told.first_at or told.taken
                told.after += told.ended
                told.parts.append(part)

    try:
        asyncio.run(read())
    except GatewayError as error:
        pytest.fail(f"the body raised {error}, and is to write it", pytrace=False)
    return told


def _events(
    asked: Sequence[ModelRequest], message: Mapping[str, Any], finish_reason: str, cut: int | None
) -> list[Event]:
    """The events of an answer whose choices take turns.

    ``cut`` says into which deltas: ``None`` a character each, -1 one for all, and any other number seeds chance.
    """
    streams = [_of_choice(choice, each, message, finish_reason, cut) for choice, each in enumerate(asked)]
    events: list[Event] = []
    while any(streams):
        for stream in streams:
            if stream:
                events.append(stream.pop(0))
    return events


def _of_choice(
    choice: int, asked: ModelRequest, message: Mapping[str, Any], finish_reason: str, cut: int | None
) -> list[Event]:
    completion = completion_of(asked, message, finish_reason, choice=choice)
    deltas = [replace(delta, choice=choice) for delta in _smallest(completion)]
    if cut is not None:
        chance = random.Random(cut)
        groups: list[list[Event]] = [[]]
        for delta in deltas:
            if groups[-1] and cut >= 0 and chance.random() < 0.3:
                groups.append([])
            groups[-1].append(delta)
        return [*(each for group in groups for each in merged(group)), completion]
    return [Delta(choice, prompt_tokens=completion.call.prompt_tokens), *deltas, completion]


def _smallest(completion: Completion) -> list[Delta]:
    """An answer as one delta for each character."""
    message, tokens = completion.call.message, completion.tokens
    deltas = [Delta(reasoning=character) for character in message.get("reasoning_content") or ""]
    for number, character in enumerate(message.get("content") or ""):
        deltas.append(Delta(content=character, tokens=_part_of(tokens, number)))
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        deltas.append(Delta(calls=(CallDelta(index, call["id"], function["name"]),)))
        deltas += [Delta(calls=(CallDelta(index, arguments=character),)) for character in function["arguments"]]
    deltas = deltas or [Delta()]
    return [replace(deltas[0], prompt_tokens=completion.call.prompt_tokens), *deltas[1:]]


def _part_of(tokens: Tokens, number: int) -> Tokens:
    if not tokens.ids:
        return tokens
    one = slice(number, number + 1)
    before = tokens.ids[number - 1] if number else None
    return replace(
        tokens, ids=tokens.ids[one], logprobs=tokens.logprobs[one], top_logprobs=tokens.top_logprobs[one], before=before
    )
