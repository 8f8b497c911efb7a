"""The completions API: ``POST /v1/completions``, which goes on with a text or with token ids as they are.

Each prompt and each choice is a call of its own. A prompt that goes on from an earlier one and its answer is recorded
as the continuation of that answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentrl.errors import GatewayError, shown
from agentrl.gateway.contract import Completion, Delta, Event, ModelRequest, Reply, Route, Tokens, WireRequest
from agentrl.gateway.dialects.completions_schema import DESCRIPTION
from agentrl.gateway.dialects.fields import (
    MOST_CHOICES,
    NO_EFFECT,
    SAMPLING_FIELDS,
    choice_count,
    numbered,
    read_model,
    read_sampling,
    read_usage,
)
from agentrl.gateway.dialects.overrides import apply_override
from agentrl.gateway.dialects.refusals import flag, unknown, unsupported, whole, wrong
from agentrl.gateway.dialects.writing import (
    EVENT_STREAM,
    logprobs_of,
    openai_error,
    openai_refusal,
    server_event,
    written,
)

__all__ = ["Completions"]

_READ = frozenset(
    {
        "prompt",
        "model",
        "n",
        "best_of",
        "echo",
        "logprobs",
        "suffix",
        "stream",
        "stream_options",
        "return_token_ids",
        "max_completion_tokens",
    }
)
_FIELDS = SAMPLING_FIELDS | _READ | NO_EFFECT
_MAX_TOKENS = 16
"""The API's own limit where a request sets none."""
_MAX_LOGPROBS = 20


class Completions:
    """The dialect of the completions API."""

    routes = (Route("/completions"),)

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Apply ``rollout.override``, of which the fields of chat completions alone are left out.

        See ``Dialect.override``.
        """
        fields = {name: value for name, value in override.items() if value is None or name in _FIELDS}
        if isinstance(fields.get("logprobs"), bool):  # In chat completions it is true or false, and here a number.
            del fields["logprobs"]
        return apply_override(body, fields)

    def parse(self, request: WireRequest) -> Sequence[ModelRequest]:
        """Read a request: one call for each choice of each prompt; see ``Dialect.parse``."""
        if request.relayed:
            raise GatewayError(
                "an endpoint of the chat completions API takes messages, and no prompts as they are",
                code="unsupported_value",
                param="prompt",
                fix="use /v1/chat/completions, or evaluate a model whose tokenizer is here",
            )
        return _read(request.body)

    def respond(self, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> Reply:
        """Write the choices; see ``Dialect.respond``."""
        form = _Form.of(request.body)
        choices = []
        for index, (each, completion) in enumerate(zip(asked, completions, strict=True)):
            before = form.echoed(each, completion.tokens)
            text = before + str(completion.call.message["content"])
            told = _legacy_logprobs(completion.tokens, len(before), form.logprobs)
            ids = {"token_ids": list(completion.tokens.ids), "prompt_token_ids": list(completion.prompt_ids)}
            choices.append(_choice(index, text, told, completion.call.finish_reason) | (ids if form.ids else {}))
        return Reply(
            200, written(_head(request, asked) | {"choices": choices, "usage": _usage(completions, form.number)})
        )

    def stream(self, request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]) -> Reply:
        """Write chunks as server-sent events; see ``Dialect.stream``."""
        return Reply(200, _chunks(request, asked, events), EVENT_STREAM)

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error; see ``Dialect.refuse``."""
        return openai_refusal(error)

    def describe(self) -> Mapping[str, Any]:
        """Say what is served; see ``Described.describe``."""
        return DESCRIPTION


@dataclass(frozen=True, slots=True)
class _Form:
    """What a request asks of the form of its answer."""

    number: int
    """How many choices each prompt has."""
    echo: bool
    logprobs: int | None
    """How many alternatives to report at each token; ``None`` reports no log-probabilities."""
    ids: bool
    """Whether the answer is to hold token ids."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> _Form:
        logprobs = None if given.get("logprobs") is None else whole(given, "logprobs", 0, _MAX_LOGPROBS, 0)
        return cls(choice_count(given.get("n")), flag(given, "echo"), logprobs, flag(given, "return_token_ids"))

    def echoed(self, asked: ModelRequest, tokens: Tokens) -> str:
        """What comes before the answer: its prompt, if that is to be repeated."""
        if not self.echo or asked.prompt is None:
            return ""
        if isinstance(asked.prompt, str):
            return asked.prompt
        befores = (None, *asked.prompt)
        pieces = (tokens.piece(token, before) for token, before in zip(asked.prompt, befores, strict=False))
        return b"".join(pieces).decode(errors="replace")


def _read(body: Mapping[str, Any]) -> list[ModelRequest]:
    given = {name: value for name, value in body.items() if value is not None}
    for name in sorted(given.keys() - _FIELDS):
        raise unknown(name, given[name], _FIELDS)
    read_model(given)
    read_usage(given)
    form = _Form.of(given)
    if given.get("suffix"):
        fix = "put it into the prompt, as the model was taught, or set rollout.override: {suffix: null}"
        raise unsupported("suffix", given["suffix"], "cannot be honoured: a completion goes on at its end", fix=fix)
    if whole(given, "best_of", 1, MOST_CHOICES, form.number) != form.number:
        fix = "ask for n and choose among them, or set rollout.override: {best_of: null}"
        raise unsupported("best_of", given["best_of"], f"is not n={form.number}", fix=fix)
    if form.echo and form.logprobs is not None:
        raise unsupported("echo", True, "with logprobs asks for those of the prompt, which nobody computes here")
    prompts = _prompts(given.get("prompt"))
    if len(prompts) * form.number > MOST_CHOICES:
        raise wrong("prompt", f"comes to {len(prompts) * form.number} choices", fix=f"ask for up to {MOST_CHOICES}")
    stream = flag(given, "stream")
    first = ModelRequest(
        body=body,
        messages=[],
        calls_tools=False,
        fields={"max_tokens": _MAX_TOKENS, **read_sampling(given)},
        logprobs=form.logprobs is not None or (stream and (form.ids or form.echo)),
        top_logprobs=form.logprobs or 0,
        stream=stream,
        prompt=prompts[0],
    )
    return [_numbered(first, number, prompts[number // form.number]) for number in range(len(prompts) * form.number)]


def _numbered(first: ModelRequest, number: int, prompt: str | tuple[int, ...]) -> ModelRequest:
    return replace(numbered(first, number), prompt=prompt) if number else first


def _prompts(value: Any) -> list[str | tuple[int, ...]]:
    """The prompts in a text, a list of texts, a list of ids or a list of such lists."""
    if isinstance(value, str):
        return [value]
    if _is_ids(value):
        return [tuple(value)]
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return list(value)
    if isinstance(value, list) and value and all(map(_is_ids, value)):
        return [tuple(each) for each in value]
    raise wrong("prompt", f"is neither a text nor token ids, nor a list of either: {shown(value, 80)}")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int and 0 <= each < 2**31 for each in value)


def _head(request: WireRequest, asked: Sequence[ModelRequest]) -> dict[str, Any]:
    return {
        "id": asked[0].call_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": request.settings.model,
    }


def _choice(index: int, text: str, told: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": told, "finish_reason": finish_reason}


def _usage(completions: Sequence[Completion], number: int) -> dict[str, int]:
    """The tokens of all prompts, each of which has ``number`` choices, and of all choices."""
    prompt = sum(each.call.prompt_tokens for each in completions[::number])
    sampled = sum(each.call.completion_tokens for each in completions)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _legacy_logprobs(tokens: Tokens, offset: int, alternatives: int | None) -> dict[str, Any] | None:
    """Log-probabilities in this API's own shape; the text of the first token begins after ``offset`` characters."""
    if alternatives is None:
        return None
    entries = logprobs_of(tokens)
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    tops = [{other["token"]: other["logprob"] for other in entry["top_logprobs"]} for entry in entries]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops if alternatives else None,
        "text_offset": offsets,
    }


class _TextWriter:
    """Writes the chunks of one choice."""

    def __init__(self, form: _Form, index: int, asked: ModelRequest) -> None:
        self._form, self._index, self._asked = form, index, asked
        self._begun = False
        self._offset = 0

    def next(self, delta: Delta) -> dict[str, Any] | None:
        """The choice of a chunk; ``None`` where there is nothing to say."""
        text = delta.content
        if not self._begun:
            self._begun = True
            before = self._form.echoed(self._asked, delta.tokens)
            text, self._offset = before + text, len(before)
        told = _legacy_logprobs(delta.tokens, self._offset, self._form.logprobs)
        if told is not None:
            self._offset += sum(map(len, told["tokens"]))
        choice = _choice(self._index, text, told if delta.tokens.ids else None, None)
        if self._form.ids:
            choice["token_ids"] = list(delta.tokens.ids)
        return choice if text or delta.tokens.ids else None

    def last(self, completion: Completion) -> dict[str, Any]:
        """The choice of the chunk that ends it."""
        ids = {"token_ids": [], "prompt_token_ids": list(completion.prompt_ids)} if self._form.ids else {}
        return _choice(self._index, "", None, completion.call.finish_reason) | ids


async def _chunks(
    request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]
) -> AsyncIterator[bytes]:
    """The chunks of streamed completions, and at the end their usage if it was asked for."""
    counted, form = read_usage(request.body), _Form.of(request.body)
    head, tail = _head(request, asked), {"usage": None} if counted else {}
    writers = [_TextWriter(form, index, each) for index, each in enumerate(asked)]
    completions: dict[int, Completion] = {}
    try:
        async for event in events:
            if not isinstance(event, Completion):
                if (choice := writers[event.choice].next(event)) is not None:
                    yield server_event({**head, "choices": [choice], **tail})
                continue
            completions[event.choice] = event
            part = server_event({**head, "choices": [writers[event.choice].last(event)], **tail})
            if len(completions) < len(asked):
                yield part
                continue
            if counted:
                usage = _usage([completions[index] for index in range(len(asked))], form.number)
                part += server_event({**head, "choices": [], "usage": usage})
            yield part + b"data: [DONE]\n\n"
            return
    except GatewayError as error:
        yield server_event({"error": openai_error(error)})
