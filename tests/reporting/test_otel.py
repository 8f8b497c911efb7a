"""Traces of episodes are OTLP, by the semantic conventions for generative AI."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from tests.reporting.tracked import episode

from agentrl.reporting.otel import Traces
from agentrl.rollout.contract import Episode, EpisodeKey

KEY = EpisodeKey("eval", 7, 2, 1)
TIMES = {"r1": (0.25, 0.5), "r2": (1.0, 0.25)}
BEGAN = 1_790_000_000.5


def timed(whole: Episode) -> Episode:
    """``whole`` as a run of today records it."""
    calls = tuple(replace(call, started=TIMES[call.id][0], waited=0.125) for call in whole.calls)
    return replace(whole, started=BEGAN, calls=calls)


def spans(traces: Traces, whole: Episode) -> dict[str, Span]:
    """The spans of an episode by their names and ids, as the protocol's own types read its line."""
    line = json.loads(json.dumps(traces.line(whole)))
    (resource,) = line["resourceSpans"]
    for span in resource["scopeSpans"][0]["spans"]:
        for name in ("traceId", "spanId", "parentSpanId"):  # In hexadecimal, other than bytes elsewhere in protobuf.
            span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    request = ParseDict(line, ExportTraceServiceRequest())
    assert {each.key: each.value.string_value for each in request.resource_spans[0].resource.attributes} == {
        "service.name": "agentrl",
        "agentrl.run": "mine",
    }
    found = request.resource_spans[0].scope_spans[0].spans
    assert len({span.trace_id for span in found}) == 1
    assert len({span.span_id for span in found}) == len(found)
    return {f"{span.name} {attributes(span).get('gen_ai.response.id', '')}".strip(): span for span in found}


def attributes(holder: Any) -> dict[str, Any]:
    def value(any_value: Any) -> Any:
        kind = any_value.WhichOneof("value")
        held = getattr(any_value, kind)
        return [value(each) for each in held.values] if kind == "array_value" else held

    return {each.key: value(each.value) for each in holder.attributes}


def seconds(span: Span) -> tuple[float, float]:
    start, end = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
    return pytest.approx((start - BEGAN, end - BEGAN), abs=1e-6)


@pytest.fixture
def traces() -> Traces:
    return Traces("mine", "math", "tiny", BEGAN)


def test_an_episode_is_an_agent_with_its_calls_and_tools_in_the_times_that_were_measured(traces: Traces) -> None:
    found = spans(traces, timed(episode(KEY)))
    root, tool = found["invoke_agent math"], found["execute_tool add"]
    assert [*found] == ["invoke_agent math", "chat tiny r1", "chat tiny r2", "execute_tool add"]
    assert root.parent_span_id == b""
    assert {span.parent_span_id for span in found.values() if span is not root} == {root.span_id}
    assert seconds(root) == (0.0, 1.5)
    assert seconds(found["chat tiny r1"]) == (0.25, 0.75)
    assert seconds(tool) == (0.75, 1.0)
    assert seconds(found["chat tiny r2"]) == (1.0, 1.25)
    kinds = {name.split()[0]: Span.SpanKind.Name(span.kind) for name, span in found.items()}
    assert kinds == {
        "invoke_agent": "SPAN_KIND_INTERNAL",
        "chat": "SPAN_KIND_CLIENT",
        "execute_tool": "SPAN_KIND_INTERNAL",
    }
    assert attributes(tool)["agentrl.times"] == "between_calls"
    assert "agentrl.times" not in attributes(root)


def test_attributes_are_those_of_the_conventions(traces: Traces) -> None:
    whole = timed(episode(KEY, 0.5, reward_parts={"close": 0.25}, trained_step=3))
    request = {**whole.calls[1].request, "temperature": 1, "max_completion_tokens": 9, "stop": "\n", "seed": 5}
    whole = replace(whole, calls=(whole.calls[0], replace(whole.calls[1], request={**request, "stream": True})))
    found = spans(traces, whole)
    known = {value for name, value in vars(gen_ai).items() if name.startswith("GEN_AI_") and isinstance(value, str)}
    for span in found.values():
        assert {name for name in attributes(span) if name.startswith("gen_ai.")} <= known
    chat = attributes(found["chat tiny r2"])
    assert json.loads(chat.pop(gen_ai.GEN_AI_INPUT_MESSAGES)) == [
        {"role": "system", "parts": [{"type": "text", "content": "Add."}]},
        {"role": "user", "parts": [{"type": "text", "content": "2 + 1?"}]},
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "add", "arguments": {"a": 2, "b": 1}}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "3"}]},
    ]
    assert json.loads(chat.pop(gen_ai.GEN_AI_OUTPUT_MESSAGES)) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "It is 3."}], "finish_reason": "stop"}
    ]
    assert json.loads(chat.pop(gen_ai.GEN_AI_TOOL_DEFINITIONS))[0]["name"] == "add"
    assert chat == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "agentrl",
        "gen_ai.conversation.id": "eval-7-2-1",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.id": "r2",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 5,
        "gen_ai.request.stream": True,
        "gen_ai.request.stop_sequences": ["\n"],
        "gen_ai.response.time_to_first_chunk": 0.125,
    }
    first = json.loads(attributes(found["chat tiny r1"])[gen_ai.GEN_AI_OUTPUT_MESSAGES])[0]
    assert first["parts"][0] == {"type": "reasoning", "content": "Use the tool."}
    assert first["finish_reason"] == "tool_call"
    tool = attributes(found["execute_tool add"])
    assert (tool["gen_ai.tool.call.result"], json.loads(tool["gen_ai.tool.call.arguments"])) == ("3", {"a": 2, "b": 1})
    root = found["invoke_agent math"]
    assert attributes(root)["gen_ai.usage.input_tokens"] == 60
    assert (attributes(root)["agentrl.outcome"], attributes(root)["agentrl.trained_step"]) == ("rewarded", 3)
    scores = [attributes(event) for event in root.events if event.name == "gen_ai.evaluation.result"]
    assert [(each["gen_ai.evaluation.name"], each["gen_ai.evaluation.score.value"]) for each in scores] == [
        ("reward", 0.5),
        ("close", 0.25),
    ]


def test_a_failure_is_the_status_of_the_agent(traces: Traces) -> None:
    root = spans(traces, timed(episode(KEY, None)))["invoke_agent math"]
    assert (root.status.code, root.status.message) == (Status.STATUS_CODE_ERROR, "agent: it broke")
    assert attributes(root)["error.type"] == "agent"
    assert not root.events


def test_what_recorded_no_times_is_laid_end_to_end_and_says_so(traces: Traces) -> None:
    one, two = spans(traces, episode(KEY)), spans(traces, episode(EpisodeKey("eval", 8, 2, 1)))
    assert seconds(one["chat tiny r1"]) == (0.0, 0.5)
    assert seconds(one["chat tiny r2"]) == (0.5, 0.75)
    assert seconds(one["invoke_agent math"]) == (0.0, 1.5)
    assert seconds(two["invoke_agent math"]) == (1.5, 3.0)
    assert {attributes(span)["agentrl.times"] for name, span in one.items() if "tool" not in name} == {
        "laid_end_to_end"
    }


def test_the_same_episode_has_the_same_ids_whenever_it_is_written(traces: Traces) -> None:
    def ids(of: Traces) -> list[bytes]:
        return [part for span in spans(of, timed(episode(KEY))).values() for part in (span.trace_id, span.span_id)]

    assert ids(traces) == ids(Traces("mine", "math", "tiny", 0.0))
