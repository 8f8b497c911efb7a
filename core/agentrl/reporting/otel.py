"""Episodes as traces of OpenTelemetry, by its semantic conventions for generative AI, written as OTLP in JSON.

An episode is a trace: a span ``invoke_agent``, below it a span ``chat`` for each call to the model, and a span
``execute_tool`` for each tool call whose result a later call sent. Conventions:
https://github.com/open-telemetry/semantic-conventions-genai; format: OTLP 1.x, JSON encoding,
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from agentrl.gateway.contract import Call
from agentrl.reporting.chat import request_messages, request_tools, response_message
from agentrl.rollout.contract import Episode

__all__ = ["Traces"]

Attributes = dict[str, Any]

_INTERNAL, _CLIENT = 1, 3
_ERROR = 2
_PROVIDER = "agentrl"
_REQUESTED = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "seed": "gen_ai.request.seed",
    "stream": "gen_ai.request.stream",
}
"""Fields of requests that have an attribute of their own."""
_DOUBLES = {"temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty"}
_FINISHED = {"tool_calls": "tool_call", "function_call": "tool_call"}
"""Reasons for the end of an answer that the conventions call otherwise than the chat completions API."""
_TIMES = "agentrl.times"
"""How the times of a span are known, where they were not measured: ``laid_end_to_end`` for a run that did not record
when its calls began, ``between_calls`` for a tool, which ran at some time between two calls."""


@dataclass(slots=True)
class _Span:
    id: str
    name: str
    kind: int
    start: float
    """In seconds since the epoch."""
    end: float
    attributes: Attributes
    parent: str | None = None
    error: str | None = None
    events: list[tuple[str, Attributes]] = field(default_factory=list)


class Traces:
    """Makes the traces of the episodes of one run. Those of an episode have the same ids whenever they are made.

    ``run`` is the run's name, and ``began`` when it began, in seconds since the epoch. From there the episodes of a run
    that did not record their times are laid end to end.
    """

    def __init__(self, run: str, agent: str, model: str, began: float) -> None:
        self._run = run
        self._agent = agent
        self._model = model
        self._next = began

    def line(self, episode: Episode) -> dict[str, Any]:
        """The trace of an episode, as one ``ExportTraceServiceRequest``: a line of a file of OTLP in JSON."""
        trace = _id(f"{self._run}/{episode.key}", 16)
        resource = {"service.name": _PROVIDER, "agentrl.run": self._run}
        spans = [_written(span, trace) for span in self._spans(episode, trace)]
        scope = {"name": _PROVIDER, "version": version("agentrl-core")}
        return {
            "resourceSpans": [
                {
                    "resource": {"attributes": _attributes(resource)},
                    "scopeSpans": [{"scope": scope, "spans": spans}],
                }
            ]
        }

    def _spans(self, episode: Episode, trace: str) -> Iterator[_Span]:
        is_timed = episode.started is not None and all(call.started is not None for call in episode.calls)
        times = _measured(episode) if is_timed else self._laid_out(episode)
        noted = {} if is_timed else {_TIMES: "laid_end_to_end"}
        root = self._root(episode, trace, times[None])
        root.attributes |= noted
        yield root
        ends = {call.id: times[call.id][1] for call in episode.calls}
        for call in episode.calls:
            start, end = times[call.id]
            span = _Span(_id(f"{trace}/{call.id}", 8), f"chat {self._model}", _CLIENT, start, end, {}, root.id)
            span.attributes = self._chat(episode, call) | noted
            yield span
            if call.parent in ends:
                yield from self._tools(episode, call, trace, root.id, (ends[call.parent], start))

    def _root(self, episode: Episode, trace: str, times: tuple[float, float]) -> _Span:
        key = episode.key
        attributes: Attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.agent.name": self._agent,
            "gen_ai.request.model": self._model,
            "gen_ai.conversation.id": str(key),
            "gen_ai.usage.input_tokens": sum(call.prompt_tokens for call in episode.calls),
            "gen_ai.usage.output_tokens": sum(call.completion_tokens for call in episode.calls),
            "error.type": None if episode.failure is None else episode.failure.side,
            "agentrl.phase": key.phase,
            "agentrl.group": key.group,
            "agentrl.task": key.task,
            "agentrl.sample": key.sample,
            "agentrl.outcome": episode.outcome,
            "agentrl.mistake": episode.mistake,
            "agentrl.attempts": episode.attempts,
            "agentrl.version": episode.version,
            "agentrl.trained_step": episode.trained_step,
            "agentrl.task.data": _json(episode.data),
            "agentrl.answer": None if episode.answer is None else _json(episode.answer),
        }
        if episode.calls:
            attributes["gen_ai.input.messages"] = _json([*map(_message, request_messages(episode.calls[0]))])
            attributes["gen_ai.output.messages"] = _json([_output(episode.calls[-1])])
        span = _Span(_id(f"{trace}/", 8), f"invoke_agent {self._agent}", _INTERNAL, *times, attributes)
        span.error = None if episode.failure is None else str(episode.failure)
        scores = {} if episode.reward is None else {"reward": episode.reward, **episode.reward_parts}
        for name, value in scores.items():
            score = {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": float(value)}
            span.events.append(("gen_ai.evaluation.result", score))
        return span

    def _chat(self, episode: Episode, call: Call) -> Attributes:
        request = call.request
        attributes: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.conversation.id": str(episode.key),
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": call.id,
            "gen_ai.response.finish_reasons": [_FINISHED.get(call.finish_reason, call.finish_reason)],
            "gen_ai.usage.input_tokens": call.prompt_tokens,
            "gen_ai.usage.output_tokens": call.completion_tokens,
            "gen_ai.input.messages": _json([*map(_message, request_messages(call))]),
            "gen_ai.output.messages": _json([_output(call)]),
            "agentrl.delivered": None if call.delivered else False,
            "agentrl.fork_reason": call.fork_reason,
        }
        for name, attribute in _REQUESTED.items():
            value = request.get(name)
            if isinstance(value, bool | int | float):
                attributes[attribute] = float(value) if name in _DOUBLES else value
        stop = request.get("stop", request.get("stop_sequences"))
        if stop:
            attributes["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else [*map(str, stop)]
        if tools := request_tools(call):
            attributes["gen_ai.tool.definitions"] = _json([{"type": "function", **t["function"]} for t in tools])
        if call.waited is not None:
            streamed = request.get("stream") is True
            name = "gen_ai.response.time_to_first_chunk" if streamed else "agentrl.time_to_first_token"
            attributes[name] = call.waited
        return attributes

    def _tools(
        self, episode: Episode, call: Call, trace: str, root: str, times: tuple[float, float]
    ) -> Iterator[_Span]:
        """The tools whose results ``call`` sent, and that the call before it asked for."""
        parent = next(each for each in episode.calls if each.id == call.parent)
        results = {
            message["tool_call_id"]: message["content"]
            for message in request_messages(call)
            if message["role"] == "tool" and "tool_call_id" in message
        }
        start = min(times)  # Calls may overlap.
        for asked in response_message(parent).get("tool_calls", ()):
            if asked["id"] not in results:
                continue
            function, result = asked["function"], results[asked["id"]]
            attributes: Attributes = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": function["name"],
                "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": asked["id"],
                "gen_ai.tool.call.arguments": function["arguments"],
                "gen_ai.tool.call.result": result if isinstance(result, str) else _json(result),
                "gen_ai.conversation.id": str(episode.key),
                _TIMES: "between_calls",
            }
            id = _id(f"{trace}/{call.id}/{asked['id']}", 8)
            yield _Span(id, f"execute_tool {function['name']}", _INTERNAL, start, times[1], attributes, root)

    def _laid_out(self, episode: Episode) -> dict[str | None, tuple[float, float]]:
        """Times of an episode, and of its calls, where none were recorded."""
        start = at = self._next
        times: dict[str | None, tuple[float, float]] = {}
        for call in episode.calls:
            times[call.id] = at, at + call.seconds
            at += call.seconds
        self._next = max(start + episode.seconds, at)
        times[None] = start, self._next
        return times


def _measured(episode: Episode) -> dict[str | None, tuple[float, float]]:
    """When the last attempt of an episode began and ended, and its calls, by their ids."""
    began = episode.started or 0.0
    times: dict[str | None, tuple[float, float]] = {}
    for call in episode.calls:
        start = began + (call.started or 0.0)
        times[call.id] = start, start + call.seconds
    times[None] = began, max([began + episode.seconds, *(end for _, end in times.values())])
    return times


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the chat completions API in the form of ``gen_ai.input.messages``."""
    content = message["content"]
    if message["role"] == "tool":
        part = {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}
        return {"role": "tool", "parts": [part]}
    thinking, parts = message.get("reasoning_content"), [] if not content else [content]
    if isinstance(content, list):
        parts = [each["text"] if isinstance(each, Mapping) and "text" in each else each for each in content]
    said = [{"type": "text", "content": each} if isinstance(each, str) else _generic(each) for each in parts]
    return {
        "role": message["role"],
        "parts": [
            *([{"type": "reasoning", "content": thinking}] if thinking else []),
            *said,
            *map(_asked, message.get("tool_calls", ())),
        ],
        **({"name": message["name"]} if "name" in message else {}),
    }


def _output(call: Call) -> dict[str, Any]:
    """What a call was answered, in the form of ``gen_ai.output.messages``."""
    reason = _FINISHED.get(call.finish_reason, call.finish_reason)
    return _message(response_message(call)) | {"finish_reason": reason}


def _generic(part: Any) -> dict[str, Any]:
    return {**part, "type": str(part.get("type"))} if isinstance(part, Mapping) else {"type": "json", "content": part}


def _asked(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    with contextlib.suppress(ValueError, RecursionError):  # Then they stay as the policy wrote them.
        arguments = json.loads(arguments)
    return {"type": "tool_call", "id": call["id"], "name": call["function"]["name"], "arguments": arguments}


def _written(span: _Span, trace: str) -> dict[str, Any]:
    written: dict[str, Any] = {
        "traceId": trace,
        "spanId": span.id,
        "parentSpanId": span.parent or "",
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": _nano(span.start),
        "endTimeUnixNano": _nano(max(span.start, span.end)),
        "attributes": _attributes(span.attributes),
        "status": {} if span.error is None else {"code": _ERROR, "message": span.error},
    }
    if span.events:
        written["events"] = [
            {"timeUnixNano": _nano(span.end), "name": name, "attributes": _attributes(attributes)}
            for name, attributes in span.events
        ]
    return written


def _nano(seconds: float) -> str:
    return str(round(seconds * 1_000_000) * 1000)


def _attributes(values: Attributes) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value is not None]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    return {"arrayValue": {"values": [_value(each) for each in value]}}


def _id(text: str, size: int) -> str:
    """An id of ``size`` bytes in hexadecimal, the same for the same text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:size].hex()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
