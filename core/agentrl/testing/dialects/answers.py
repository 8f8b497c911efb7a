"""The part of a dialect's suite about whole answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentrl.gateway.contract import ModelRequest
from agentrl.testing.dialects.bench import SAID, Bench, DialectSuite, Parsed, completion_of, shown, whole

__all__ = ["Answers", "messages_for"]

_TEXTS = (SAID, "", "\n\n", "Grüße, 👩‍👩‍👧 and a\nnew line", "x" * 200)
_ARGUMENTS = ('{"input": "12 * 34", "of": [1, {"x": "é\\n"}]}', "{}", "not JSON")


def messages_for(asked: ModelRequest) -> Iterator[dict[str, Any]]:
    """What the policy may answer to a request."""
    for text in _TEXTS:
        yield {"content": text}
    yield {"content": SAID, "reasoning_content": "12 * 34\n"}
    yield {"content": "", "reasoning_content": "I was cut in my thoughts"}
    if asked.tools and asked.calls_tools:
        names = [tool["function"]["name"] for tool in asked.tools]
        calls = [
            {"id": f"call_{number}", "type": "function", "function": {"name": names[0], "arguments": arguments}}
            for number, arguments in enumerate(_ARGUMENTS)
        ]
        yield {"content": "", "tool_calls": calls[:1]}
        yield {"content": "Let me see.", "reasoning_content": "hm", "tool_calls": calls[: 1 if asked.one_call else 3]}


class Answers(DialectSuite):
    """Tests of how an answer is written."""

    def test_an_answer_is_recorded_and_delivered(self, bench: Bench) -> None:
        for body in self.asks:
            count = len(bench.parsed(body).asked)
            with bench.session(training=False) as (session, ask):
                response = ask(body)
                assert 200 <= response.status_code < 300, f"{shown(body)}: {response.status_code} {response.text}"
                assert response.content, f"{shown(body)} is answered with nothing"
                assert len(session.calls) == count, f"{shown(body)}: {len(session.calls)} calls of {count}"
                assert all(call.delivered for call in session.calls), f"{shown(body)}: an answer that has not arrived"
                assert response.headers["x-request-id"] == session.calls[0].id

    def test_an_answer_holds_what_the_policy_says(self, bench: Bench) -> None:
        parsed = bench.parsed(self.asks[0])
        body = self._written(bench, parsed, {"content": "Fourhundredeight"}, "stop")
        assert b"Fourhundredeight" in body, f"the policy's words are not in {body[:200]!r}"

    def test_an_answer_is_written_whatever_it_is_and_however_it_ended(self, bench: Bench) -> None:
        for body in self.asks:
            parsed = bench.parsed(body)
            for message in messages_for(parsed.asked[0]):
                for finish_reason in ("stop", "length"):
                    self._written(bench, parsed, message, finish_reason).decode("utf-8", "strict")

    def _written(self, bench: Bench, parsed: Parsed, message: dict[str, Any], finish_reason: str) -> bytes:
        completions = [
            completion_of(each, message, finish_reason, choice=choice) for choice, each in enumerate(parsed.asked)
        ]
        reply = bench.dialect.respond(parsed.request, parsed.asked, completions)
        assert 200 <= reply.status < 300, f"an answer is written with the status {reply.status}"
        return whole(reply)
