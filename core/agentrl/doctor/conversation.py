"""An episode as the conversation that it was: what the model was given, and what it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrl.rollout.contract import Episode

__all__ = ["conversation", "written"]

_LONGEST = 1200
"""Characters of a message that are shown, of its beginning and its end."""

Message = Mapping[str, Any]


def conversation(episode: Episode) -> list[Message]:
    """The messages of an episode's calls in their order, each once; what the model wrote is marked ``sampled``.

    A call that starts another conversation, as that of a second agent does, brings its messages with it.
    """
    requests: dict[str, Sequence[Message]] = {}
    messages: list[Message] = []
    for call in episode.calls:
        sent: Sequence[Message] = call.request.get("messages") or ()
        known = requests.get(call.parent or "", ())
        given = sent[_common(known, sent) :]
        messages += [message for message in given if call.parent is None or message.get("role") != "assistant"]
        messages.append({**call.message, "sampled": True})
        requests[call.id] = sent
    return messages


def written(episode: Episode) -> list[str]:
    """The conversation as lines for people, between the task and what the agent made of it; long texts are cut."""
    said = [(_speaker(message), text) for message in conversation(episode) for text in _texts(message)]
    told = [("task", json.dumps(episode.data, ensure_ascii=False)), *said]
    if episode.answer is not None:
        told.append(("answer", episode.answer if isinstance(episode.answer, str) else repr(episode.answer)))
    width = max(len(speaker) for speaker, _ in told)
    return [line for speaker, text in told for line in _lines(speaker.ljust(width), text)]


def _lines(margin: str, text: str) -> Iterator[str]:
    for line in _cut(text).splitlines() or [""]:
        yield f"{margin}  {line}".rstrip()
        margin = " " * len(margin)


def _speaker(message: Message) -> str:
    return "model" if message.get("sampled") else str(message.get("role", ""))


def _texts(message: Message) -> Iterator[str]:
    """What a message says, its thinking first and its calls last."""
    if thought := message.get("reasoning_content"):
        yield f"(thinks) {thought}"
    content = message.get("content")
    calls = message.get("tool_calls") or ()
    if content or not calls:
        yield content if isinstance(content, str) else "" if content is None else json.dumps(content)
    for call in calls:
        function = call.get("function", {})
        yield f"calls {function.get('name')}({function.get('arguments')})"


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} more characters …\n{text[-half:]}"


def _common(one: Sequence[Message], other: Sequence[Message]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (mine, its) in enumerate(pairs) if mine != its), min(len(one), len(other)))
