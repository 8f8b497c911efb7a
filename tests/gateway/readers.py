"""What clients make of the bodies of answers, in each of our protocols: whole ones, and server-sent events."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["events_of", "read_chat", "read_completions", "read_messages", "read_responses"]


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The data of server-sent events, without the ``[DONE]`` at the end."""
    data = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


def read_chat(body: bytes, *, streamed: bool) -> Any:
    """Id and choices of a chat completion."""
    if not streamed:
        whole = json.loads(body)
        return whole["id"], [_chat_choice(each["message"], each) for each in whole["choices"]]
    chunks = events_of(body)
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        entries: list[Any] = []
        held = choices.setdefault(choice["index"], {"message": {"tool_calls": {}}, "logprobs": entries})
        for name, value in choice["delta"].items():
            if name == "tool_calls":
                for call in value:
                    _add_call(held["message"]["tool_calls"].setdefault(call["index"], {}), call)
            else:
                held["message"][name] = held["message"].get(name, "") + value
        held["logprobs"] += (choice["logprobs"] or {}).get("content") or []
        held["finish_reason"] = choice["finish_reason"] or held.get("finish_reason")
    for held in choices.values():
        held["message"]["tool_calls"] = [call for _, call in sorted(held["message"]["tool_calls"].items())]
        held["logprobs"] = {"content": held["logprobs"]}
    ids = {chunk["id"] for chunk in chunks}
    assert len(ids) == 1, ids
    return ids.pop(), [_chat_choice(held["message"], held) for _, held in sorted(choices.items())]


def _add_call(held: dict[str, Any], call: dict[str, Any]) -> None:
    for name in ("id", "type", "custom"):
        held[name] = call.get(name) or held.get(name)
    function = held.setdefault("function", {"name": "", "arguments": ""})
    for name, text in (call.get("function") or {}).items():
        function[name] += text


def _chat_choice(message: dict[str, Any], choice: dict[str, Any]) -> Any:
    calls = [
        (call["id"], call["type"], call.get("custom") or call["function"]) for call in message.get("tool_calls") or ()
    ]
    told = (choice["logprobs"] or {}).get("content") or []
    said = message["role"], message.get("content") or "", message.get("reasoning_content") or ""
    return *said, calls, choice["finish_reason"], told


def read_completions(body: bytes, *, streamed: bool) -> Any:
    """Id and choices of a completion."""
    answers = events_of(body) if streamed else [json.loads(body)]
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for answer in answers for choice in answer["choices"]):
        held = choices.setdefault(choice["index"], {"text": "", "logprobs": {}, "ids": []})
        held["text"] += choice["text"]
        held["ids"] += choice.get("token_ids") or []
        for name, values in (choice["logprobs"] or {}).items():
            held["logprobs"][name] = held["logprobs"].get(name, []) + (values or [])
        held["finish_reason"] = choice["finish_reason"] or held.get("finish_reason")
    for held in choices.values():
        held["logprobs"] = {name: values for name, values in held["logprobs"].items() if values}
    return {answer["id"] for answer in answers}, choices


def read_responses(body: bytes, *, streamed: bool) -> Any:
    """A response without its times; of a stream also that its deltas come to the output."""
    if not streamed:
        return _untimed(json.loads(body))
    events = events_of(body)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    ended = events[-1]
    assert ended["type"] in ("response.completed", "response.incomplete"), ended["type"]
    texts: dict[tuple[str, int], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            place = event["type"], event["output_index"]
            texts[place] = texts.get(place, "") + event["delta"]
    for index, item in enumerate(ended["response"]["output"]):
        for kind, said in _said(item):
            assert texts.get((f"response.{kind}.delta", index), "") == said, (kind, index)
    return _untimed(ended["response"])


def _said(item: dict[str, Any]) -> list[tuple[str, str]]:
    match item["type"]:
        case "message":
            return [("output_text", item["content"][0]["text"])]
        case "function_call":
            return [("function_call_arguments", item["arguments"])]
        case "custom_tool_call":
            return [("custom_tool_call_input", item["input"])]
        case "reasoning" if item["summary"]:
            return [("reasoning_summary_text", item["summary"][0]["text"])]
    return [("reasoning_text", item["content"][0]["text"])]


def _untimed(response: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in response.items() if name not in ("created_at", "completed_at")}


def read_messages(body: bytes, *, streamed: bool) -> Any:
    """A message of the Messages API."""
    if not streamed:
        return json.loads(body)
    message: dict[str, Any] = {}
    for event in events_of(body):
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append({**event["content_block"], "json": ""})
            case "content_block_delta":
                delta, block = event["delta"], message["content"][event["index"]]
                for name in ("text", "thinking", "signature"):
                    if name in delta:
                        block[name] = block.get(name, "") + delta[name]
                block["json"] += delta.get("partial_json", "")
            case "content_block_stop":
                block = message["content"][event["index"]]
                written = block.pop("json")
                if block["type"] == "tool_use":
                    block["input"] = json.loads(written or "{}")
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    return message
