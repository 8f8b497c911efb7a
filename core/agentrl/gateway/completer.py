"""The completer of an inference backend: a request becomes token ids, is sampled, and is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import Any

from agentrl.costs.contract import UNMETERED, Meter, Stage, Usage
from agentrl.errors import AgentRLError, BackendError, GatewayError, UnsupportedSampling
from agentrl.gateway.constraints import constraint, ill_formed, unmet
from agentrl.gateway.contract import CONTEXT_EXCEEDED, Call, Completion, Delta, ModelRequest, Tokens
from agentrl.gateway.conversations import Continuation, MessageKey, Turn, message_key, tools_key, tools_of
from agentrl.gateway.prompts import prompt_ids
from agentrl.gateway.sampling import Draw, resolve_sampling
from agentrl.gateway.session import SampledTokens, Session
from agentrl.gateway.telling import Telling, delta, joined
from agentrl.inference.contract import Backend, Capabilities, Chunk, GenerationRequest, Sampling, completion_fault
from agentrl.loops import run_in_thread
from agentrl.tokens.contract import Sampled
from agentrl.tokens.renderer import SEEN, Renderer
from agentrl.tokens.template import Message, thinking_of

__all__ = ["EngineCompleter", "generate"]

_CONTRACT = (
    "mend the backend's generate and update_weights, or use another inference.backend; agentrl doctor and "
    "agentrl.testing.BackendConformance show what is asked of it"
)
_SYSTEM_ROLES = frozenset({"system", "developer"})
_OPENING_ROLES = _SYSTEM_ROLES | {"user"}
_SPEAKERS = frozenset({"user", "assistant"})
_REMEMBERED_OPENINGS = 256
_LONG = 2**17
"""Characters from which texts are encoded in a thread: here they take some hundredths of a second."""


def _ignore(chunk: Chunk) -> None:
    """What is done with chunks that nobody waits for."""


async def generate(
    backend: Backend,
    request: GenerationRequest,
    *,
    chunks: list[Chunk] | None = None,
    new: Callable[[Chunk], None] = _ignore,
) -> Chunk:
    """The whole completion of ``request`` as one chunk, as the backend gave it.

    ``new`` is called with each chunk when it is there, and ``chunks`` grows by it. Raises ``BackendError`` for whatever
    a backend raises that is no error of agentrl's.
    """
    chunks = [] if chunks is None else chunks
    try:
        async with aclosing(backend.generate(request)) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                new(chunk)
    except AgentRLError:
        raise
    except Exception as error:
        raise BackendError(f"the inference backend failed: {type(error).__name__}: {error}") from error
    return chunks[0] if len(chunks) == 1 else joined(chunks)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The ids to complete, and how they came about."""

    ids: list[int]
    extends: bool
    """Whether they begin with the ids of the conversation that the request continues."""
    thinking: bool
    """Whether thinking of the policy is among them."""
    fork_reason: str | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request on its way to the backend, and what its recording needs."""

    session: Session
    request: ModelRequest
    overridden: tuple[str, ...]
    began: float
    continues: Continuation
    prompt: _Prompt
    draw: Draw
    sampling: Sampling


class EngineCompleter:
    """Completes requests with an inference backend and records them in their session."""

    relays = False

    def __init__(
        self,
        backend: Backend,
        capabilities: Capabilities,
        renderer: Renderer,
        *,
        vocabulary: int | None = None,
        meter: Meter = UNMETERED,
    ) -> None:
        """``vocabulary`` is how many ids the model knows; a completion with others is refused. ``None`` checks none.

        ``meter`` is told of every request to the backend, also of one that fails or is given up.
        """
        self.backend = backend
        self.capabilities = capabilities
        self.renderer = renderer
        self._vocabulary = vocabulary
        self._meter = meter
        self._openings = lru_cache(_REMEMBERED_OPENINGS)(self._opening)

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and completion together."""
        return self.capabilities.context_length

    async def complete(
        self,
        session: Session,
        request: ModelRequest,
        overridden: tuple[str, ...] = (),
        tell: Callable[[Delta], None] | None = None,
    ) -> Completion:
        """Render, sample, parse and record one completion; see ``Completer.complete``."""
        began = time.monotonic()
        request = await self._resolved(request)
        tools = tools_key(request.tools, request.template_kwargs)
        continues = self._continuation(session, request, tools)
        draw: Draw | None = None
        try:
            size = self._checked_size(continues, request)
            # To encode megabytes takes seconds, in which no other session would get on.
            prompt = (
                await run_in_thread(self._prompt, continues, request)
                if size > _LONG
                else self._prompt(continues, request)
            )
            fields = json.dumps(request.fields, sort_keys=True) if request.fields else ""
            draw = session.draws.take(prompt.ids, fields, continues.history.digested if prompt.extends else None)
            sampling = self._sampling(session, request, prompt.ids, draw)
            asked = _Asked(session, request, overridden, began, continues, prompt, draw, sampling)
            if tell is None:
                chunk = await self._generate(asked)
                return self._record(asked, chunk)
            return await self._stream(asked, tell)
        except BaseException:
            session.abandon(continues)
            if draw is not None:
                session.draws.give_back(draw)
            raise

    def count(self, session: Session, request: ModelRequest) -> int:
        """Return how many tokens the prompt of a request comes to; see ``Completer.count``."""
        request = self._in_variables(request)
        tools = tools_key(request.tools, request.template_kwargs)
        continues = self._continuation(session, request, tools)
        try:
            self._checked_size(continues, request)
            return len(self._prompt(continues, request).ids)
        finally:
            session.abandon(continues)

    def _checked_size(self, continues: Continuation, request: ModelRequest) -> int:
        """How many characters of a request are new. Raises ``GatewayError`` (400) where they can fit in no encoding.

        Turns of the assistant do not count, since templates drop thinking from them.
        """
        new = request.messages[continues.way.repeated :]
        texts = [each.get("content") for each in new if each["role"] != "assistant"]
        size = sum(map(_length, texts if request.prompt is None else [request.prompt]))
        if size > self.context_length and size // self.renderer.vocabulary.longest >= self.context_length:
            part = "messages" if request.prompt is None else "prompt"
            raise GatewayError(
                f"the {part} of {size} characters cannot fit in the context of {self.context_length} tokens",
                code=CONTEXT_EXCEEDED,
                param=part,
                fix="shorten the history, or use a model with a longer context",
            )
        return size

    def _continuation(self, session: Session, request: ModelRequest, tools: str) -> Continuation:
        if request.prompt is not None:
            return session.prompt_continuation(request.prompt)
        return session.continuation(tools, request.messages)

    def _writer(self, request: ModelRequest) -> Renderer:
        """The renderer under the variables of the chat template that a request sets."""
        return self.renderer.under(request.template_kwargs)

    async def _resolved(self, request: ModelRequest) -> ModelRequest:
        """``request`` as ``_in_variables`` returns it, and its renderer ready: the first of its kind takes a moment."""
        request = self._in_variables(request)
        if request.template_kwargs and not self.renderer.variants.known(request.template_kwargs):
            await run_in_thread(self._writer, request)
        return request

    def _in_variables(self, request: ModelRequest) -> ModelRequest:
        """``request`` with what it prefers among its variables; what the template does not know of that is unmet."""
        if not request.preferences:
            return request
        variables, unmet = self.renderer.variants.resolve(request.template_kwargs, request.preferences)
        return replace(request, template_kwargs=variables, preferences={}, unmet=(*request.unmet, *unmet))

    async def _stream(self, asked: _Asked, tell: Callable[[Delta], None]) -> Completion:
        """A completion that is told while it is sampled. Where that is cancelled midway, what there is is recorded."""
        request, prompt_ids = asked.request, asked.prompt.ids
        parser = self._writer(request).incremental(
            request.tools if request.calls_tools else None,
            prompt_ids[-SEEN:],
            call_ids=_call_ids(asked.draw.call),
            stop=asked.sampling.stop,
            text=request.prompt is not None,
        )

        telling = Telling(tell, parser, self._tokens if request.logprobs else None, len(prompt_ids))
        try:
            chunk = await self._generate(asked, chunks=telling.chunks, new=telling.soon)
            telling.now()
            completion = self._record(asked, chunk)
        except asyncio.CancelledError:
            if telling.chunks:
                self._record_partial(asked, joined(telling.chunks))
            raise
        finally:
            telling.stop()
        if rest := parser.end(completion.call.message):
            tell(delta(rest, Tokens(), len(prompt_ids)))
        return completion

    def _record_partial(self, asked: _Asked, chunk: Chunk) -> None:
        """Record what was sampled before the client left, as not delivered: it is trained if history holds it."""
        if chunk.finish is None and self._fault(replace(chunk, finish="length"), asked) is None:
            with contextlib.suppress(GatewayError):  # The session may be closed.
                self._record(asked, replace(chunk, finish="cancelled"))
                asked.session.arrived(asked.request.call_id, False)

    def _record(self, asked: _Asked, chunk: Chunk) -> Completion:
        session, request, prompt = asked.session, asked.request, asked.prompt
        message, shown = self._read(chunk, request, prompt.ids, asked.draw.call)
        parent = asked.continues.match.turn
        call = Call(
            id=request.call_id,
            parent=parent.call if parent else None,
            request=session.keep(request.body),
            message=message,
            finish_reason=_finish_reason(chunk, message),
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(chunk.ids),
            fork_reason=prompt.fork_reason,
            overridden=asked.overridden,
            unmet=unmet(request, asked.sampling.grammar) if request.unmet else (),
            control_tokens=self._control_tokens(asked.continues, request),
            normalised=request.normalised,
            seconds=time.monotonic() - asked.began,
            started=request.arrived - session.opened,
            waited=None if chunk.first_token is None else chunk.first_token - request.arrived,
        )
        turn = Turn(
            call=call.id,
            digest=asked.draw.call,
            prompt_tokens=len(prompt.ids),
            thinking=prompt.thinking or self.renderer.thinks(chunk.ids, prompt.ids),
            message=message,
            tool_call_ids=tuple(made["id"] for made in message.get("tool_calls") or ()),
            asked_tokens=_asked_tokens(request.messages, prompt, parent),
        )
        grammar = asked.sampling.grammar
        source = Sampled(
            call.id,
            chunk.logprobs,
            chunk.versions,
            asked.sampling.temperature or 1.0,
            constrained=grammar is not None,
            grammar=grammar,
            stop_ids=() if grammar is None else tuple(sorted(asked.sampling.stop_ids)),
            alternatives=chunk.top_logprobs if asked.sampling.top_logprobs else (),
        )
        session.record(
            call,
            turn,
            message_key(message),
            asked.continues,
            tokens=SampledTokens(prompt.ids, chunk.ids, source, shown, prompt.extends, asked.draw.prompt),
            spelled=self.renderer.control.spelled(message, chunk.ids, self.renderer.vocabulary.decode),
            prompt=self._prompt_text(request.prompt),
        )
        handle = session.handle(call.id) if message.get("reasoning_content") else ""
        told = self._tokens(chunk)
        return Completion(
            call, session.settings.model, told, prompt_ids=prompt.ids, handle=handle, stop=chunk.stop_string
        )

    def _prompt_text(self, prompt: str | tuple[int, ...] | None) -> str | None:
        return prompt if prompt is None or isinstance(prompt, str) else self.renderer.vocabulary.decode(prompt)

    def _tokens(self, chunk: Chunk, before: int | None = None) -> Tokens:
        return Tokens(chunk.ids, chunk.logprobs, chunk.top_logprobs, before, self.renderer.vocabulary.piece)

    def _prompt(self, continues: Continuation, request: ModelRequest) -> _Prompt:
        """The matched turn's own ids, extended by what is new; where that is impossible, everything rendered."""
        way, writer = continues.way, self._writer(request)
        # What a recorded request had was checked with it.
        writer.check(request.messages[way.repeated :], request.tools, calls_tools=request.calls_tools)
        if request.prompt is not None:
            return self._raw_prompt(continues, request.prompt)
        turn, reason = continues.match.turn, continues.match.fork_reason
        if turn is not None and reason is None:
            extended = self._extended(continues, turn, request)
            if not isinstance(extended, str):
                return _Prompt(extended, True, turn.thinking, None)
            reason = extended
            again = self._again(continues, turn, request)
            if again is not None:
                return _Prompt(again, False, turn.thinking and self.renderer.thinks(again), reason)
        if all(message["role"] in _OPENING_ROLES for message in request.messages):
            return _Prompt(list(self._openings(way.tools, *way.keys)), False, False, reason)
        if writer.abilities.drops_text(request.messages):
            reason = "text beside tool calls dropped by the template"
        ids = writer.render(*writer.marked(request.messages, request.tools, continues.spelled))
        thinking = any(map(thinking_of, request.messages)) and self.renderer.thinks(ids)
        return _Prompt(ids, False, thinking, reason)

    def _raw_prompt(self, continues: Continuation, prompt: str | tuple[int, ...]) -> _Prompt:
        """A prompt without messages."""
        ids = prompt_ids(prompt, continues, self.renderer.vocabulary, self._vocabulary)
        turn = continues.match.turn
        if turn is None:
            return _Prompt(ids, False, False, None)
        cut = None if turn.position is not None else "a stop string cut the turn inside a token"
        return _Prompt(ids, cut is None, turn.thinking, cut)

    def _extended(self, continues: Continuation, turn: Turn, request: ModelRequest) -> list[int] | str:
        """The matched turn's ids and those of the new messages, or why the one cannot follow the other."""
        if turn.position is None:
            return "a stop string cut the turn inside a token"
        if turn.thinking and not any(message["role"] == "user" for message in request.messages):
            return "thinking without a question"  # Templates tell by the last question what thinking they keep.
        known = continues.match.messages
        marked, tools = self.renderer.marked(request.messages[known:], request.tools, continues.spelled[known:])
        prompt, completion, _ = continues.history
        seen, before = prompt[-SEEN:], request.messages[:known]
        extended = self._writer(request).extend(seen, completion, marked, tools, thinking=turn.thinking, history=before)
        return extended if isinstance(extended, str) else prompt + extended[len(seen) :]

    def _again(self, continues: Continuation, turn: Turn, request: ModelRequest) -> list[int] | None:
        """The ids up to the last question, and what follows it rendered again; ``None`` where all of it has to be."""
        messages, known = request.messages, continues.match.messages
        question = next((n for n in reversed(range(known)) if messages[n]["role"] == "user"), None)
        if question is None or turn.position is None or not turn.asked_tokens or known == len(messages):
            return None
        opening = next(n for n, message in enumerate(messages) if message["role"] not in _SYSTEM_ROLES)
        kept = [*range(opening), *range(question, len(messages))]
        spelled = [continues.spelled[n] for n in kept]
        marked, tools = self.renderer.marked([messages[n] for n in kept], request.tools, spelled)
        new = len(messages) - known
        return self._writer(request).render_again(
            continues.history.prompt[: turn.asked_tokens], marked[:-new], marked[-new:], tools, thinking=turn.thinking
        )

    def _control_tokens(self, continues: Continuation, request: ModelRequest) -> tuple[str, ...]:
        """The control tokens that new texts of the request spell out, where the model reads them as such."""
        if self.renderer.plain_text:
            return ()
        return self.renderer.control.given(request.messages[continues.match.messages :])

    def _opening(self, tools: str, *keys: MessageKey) -> tuple[int, ...]:
        """The prompt of a conversation without a turn of the assistant; the episodes of a group share it."""
        messages: list[Message] = []
        for role, name, text in keys:
            messages.append({"role": role, "content": text} | ({} if name is None else {"name": name}))
        offered, variables = tools_of(tools)
        writer = self.renderer.under(variables)
        return tuple(writer.render(*writer.marked(messages, offered)))

    def _sampling(self, session: Session, request: ModelRequest, prompt_ids: list[int], draw: Draw) -> Sampling:
        room = self.capabilities.context_length - len(prompt_ids)
        if room < 1:
            part, come = ("messages", "messages come") if request.prompt is None else ("prompt", "prompt comes")
            raise GatewayError(
                f"the {come} to {len(prompt_ids)} tokens, which leaves no room in the context of "
                f"{self.capabilities.context_length}",
                code=CONTEXT_EXCEEDED,
                param=part,
                fix="shorten the history, or use a model with a longer context",
            )
        writer = self._writer(request)
        bound = request.must_call or request.grammar or request.tools
        grammar = constraint(request, writer.forms, self.capabilities, prompt_ids) if bound else None
        ends = writer.stop_ids
        if request.one_call and grammar is None:
            if self.renderer.tool_end_id is None:
                raise GatewayError(
                    "parallel_tool_calls=false cannot be kept with this model: no token ends its tool calls",
                    param="parallel_tool_calls",
                    code="unsupported_value",
                    fix="drop it from the request, or set rollout.override: {parallel_tool_calls: null}",
                )
            ends = ends | {self.renderer.tool_end_id}
        # A request's own seed gives equal samples for equal requests of its episode, so their number does not count.
        # It is part of the digest: taken as it is, it would make the episodes of a group one and the same.
        digest = draw.call if request.fields.get("seed") is None else draw.request
        seed = int.from_bytes(digest[:8]) >> 1
        sampling = resolve_sampling(request, session.settings, self.capabilities, room=room, seed=seed, stop_ids=ends)
        return replace(sampling, grammar=grammar)

    async def _generate(
        self, asked: _Asked, *, chunks: list[Chunk] | None = None, new: Callable[[Chunk], None] = _ignore
    ) -> Chunk:
        """The whole completion. Raises ``BackendError`` where it cannot be what the backend says that it is."""
        request = GenerationRequest(
            asked.prompt.ids, asked.sampling, stream=chunks is not None, session=asked.session.id
        )
        chunks = [] if chunks is None else chunks
        began = time.monotonic()
        try:
            whole = await generate(self.backend, request, chunks=chunks, new=new)
        except UnsupportedSampling as error:
            if asked.sampling.grammar is None:
                raise
            raise ill_formed(error, asked.request) from error
        finally:
            self._spend(asked, chunks, time.monotonic() - began)
        if wrong := self._fault(whole, asked):
            raise BackendError(f"the inference backend broke its contract: {wrong}", fix=_CONTRACT)
        return whole

    def _spend(self, asked: _Asked, chunks: Sequence[Chunk], seconds: float) -> None:
        """Tell the meter of a request, with the tokens that were sampled until it ended."""
        prompt, history, settings = asked.prompt, asked.continues.history, asked.session.settings
        shared = min(len(history.prompt) + len(history.completion), len(prompt.ids)) if prompt.extends else 0
        sampled = sum(len(chunk.ids) for chunk in chunks)
        stage: Stage = "rollout" if settings.training else "evaluation"
        self._meter.spend(stage, "policy", settings.model, Usage(1, 0, len(prompt.ids), shared, sampled, seconds))

    def _fault(self, chunk: Chunk, asked: _Asked) -> str | None:
        if len(chunk.top_logprobs) not in (0, len(chunk.ids)):
            return f"a completion of {len(chunk.ids)} ids came with alternatives for {len(chunk.top_logprobs)} of them"
        return completion_fault(chunk, vocabulary=self._vocabulary, versions=asked.session.settings.versions)

    def _read(
        self, chunk: Chunk, request: ModelRequest, prompt_ids: list[int], digest: bytes
    ) -> tuple[Message, int | None]:
        """The message of a completion, and how many of its tokens it shows; ``None`` where it ends inside one."""
        ids, writer = list(chunk.ids), self._writer(request)
        shown: int | None = writer.history_length(ids)
        if request.prompt is not None:  # What its client is shown is text: no token that ends a turn is in it.
            ids = list(takewhile(lambda token: token not in writer.stop_ids, ids))
            shown = len(ids)
        cut = writer.vocabulary.before(ids, chunk.stop_string) if chunk.stop_string else None
        if cut is not None:
            ids, shown = cut
        if request.prompt is not None:
            return {"role": "assistant", "content": writer.vocabulary.decode(ids)}, shown
        tools = request.tools if request.calls_tools else None
        message = writer.parse(ids, tools, prompt_ids[-SEEN:], call_ids=_call_ids(digest))
        return message, shown


def _length(content: Any) -> int:
    """How many characters the text of a message has, given whole or in parts; 0 for ids."""
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else ()
    return sum(len(part["text"]) for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _call_ids(digest: bytes) -> str:
    """How the ids of the tool calls of a call to the model begin."""
    return f"call_{digest.hex()[:24]}_"


def _asked_tokens(messages: Sequence[Mapping[str, Any]], prompt: _Prompt, parent: Turn | None) -> int:
    """How many tokens the prompt had when the last question was asked, for ``Turn.asked_tokens``."""
    if not messages or messages[-1]["role"] == "user":  # A prompt without messages is a question as a whole.
        return len(prompt.ids)
    newest = next((message["role"] for message in reversed(messages) if message["role"] in _SPEAKERS), "user")
    return 0 if newest == "user" or parent is None or not prompt.extends else parent.asked_tokens


def _finish_reason(chunk: Chunk, message: Mapping[str, Any]) -> str:
    return "tool_calls" if chunk.finish == "stop" and message.get("tool_calls") else str(chunk.finish)
