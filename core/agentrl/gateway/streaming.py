"""Streamed answers: what is sampled for one request of a client, as events for the dialect that writes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentrl.gateway.contract import CallDelta, Completion, Delta, Event, ModelRequest, Tokens
from agentrl.gateway.retries import LastPart

__all__ = ["LiveAnswer", "delta_of", "merged", "replayed", "with_last_part"]

_Complete = Callable[[int, ModelRequest, Callable[[Delta], None]], Awaitable[Completion]]
"""Makes the completion of a choice, given its number and request, and tells its deltas."""


class LiveAnswer:
    """The completions of one request while they are sampled, each in a task of its own.

    Used by one event loop; ``cancel`` may be called from any thread. Deltas that come faster than they are read are
    merged, so that a slow reader costs no more events than it takes.
    """

    def __init__(self, asked: Sequence[ModelRequest], complete: _Complete, ended: Callable[[LiveAnswer], None]) -> None:
        """``complete`` makes the completion of one choice. ``ended`` is called once, when all have ended."""
        self.completions: list[Completion] = []
        """The completions, in the order of their choices, once all of them are there; empty before."""
        self.told = False
        """Whether the reader of ``events`` has been given all completions."""
        self.given_up = False
        """Whether ``cancel`` or ``close`` has ended it."""
        self._loop = asyncio.get_running_loop()
        self._pending: list[Event] = []
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._running = len(asked)
        self._ended = ended
        self._made: dict[int, Completion] = {}
        self._tasks = [asyncio.ensure_future(self._run(choice, each, complete)) for choice, each in enumerate(asked)]

    @property
    def made(self) -> list[Completion]:
        """The completions that are there by now."""
        return list(self._made.values())

    async def begin(self) -> None:
        """Return once there is a first event. Raises what the first completion to fail before that raised."""
        try:
            while not self._pending and self._error is None:
                await self._wait()
        except BaseException:
            await self.close()
            raise
        if self._error is not None:
            await self.close()
            raise self._error

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what happens, as ``Dialect.stream`` takes it. Raises what a completion raised."""
        left = len(self._tasks)
        while left:
            while not self._pending and self._error is None:
                await self._wait()
            pending, self._pending = self._pending, []
            for event in merged(pending):
                if isinstance(event, Completion):
                    left -= 1
                    self.told = left == 0
                yield event
            if self._error is not None and not self._pending:
                raise self._error

    def cancel(self) -> None:
        """End what is still being sampled."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    async def close(self) -> None:
        """End what is still being sampled, and return when it has ended."""
        self._cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _cancel(self) -> None:
        self.given_up = True
        for task in self._tasks:
            task.cancel()

    async def _run(self, choice: int, asked: ModelRequest, complete: _Complete) -> None:
        try:
            completion = replace(await complete(choice, asked, self._add), choice=choice)
        except BaseException as error:
            if self._error is None:
                self._error = error
                self._cancel_others(choice)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._made[choice] = completion
            self._add(completion)
        finally:
            self._running -= 1
            if not self._running:
                if self._error is None:
                    self.completions = [self._made[number] for number in sorted(self._made)]
                self._ended(self)
            self._wake()

    def _cancel_others(self, choice: int) -> None:
        for other, task in enumerate(self._tasks):
            if other != choice:
                task.cancel()

    def _add(self, event: Event) -> None:
        self._pending.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


def merged(events: Sequence[Event]) -> list[Event]:
    """The events with all deltas of a choice between two completions as one."""
    if len(events) < 2:
        return list(events)
    out: list[Event] = []
    deltas: dict[int, list[Delta]] = {}
    for event in events:
        if isinstance(event, Delta):
            deltas.setdefault(event.choice, []).append(event)
            continue
        if event.choice in deltas:
            out.append(_joined(deltas.pop(event.choice)))
        out.append(event)
    return out + [_joined(each) for each in deltas.values()]


def _joined(deltas: Sequence[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    calls: dict[int, list[CallDelta]] = {}
    for delta in deltas:
        for call in delta.calls:
            calls.setdefault(call.index, []).append(call)
    told = [delta.tokens for delta in deltas if delta.tokens.ids]
    tokens = Tokens()
    if told:
        tokens = replace(
            told[0],
            ids=tuple(token for each in told for token in each.ids),
            logprobs=tuple(value for each in told for value in each.logprobs),
            top_logprobs=tuple(top for each in told for top in each.top_logprobs),
        )
    return Delta(
        deltas[0].choice,
        "".join(delta.reasoning for delta in deltas),
        "".join(delta.content for delta in deltas),
        tuple(
            CallDelta(index, parts[0].id, parts[0].name, "".join(part.arguments for part in parts))
            for index, parts in calls.items()
        ),
        tokens,
        deltas[0].prompt_tokens,
    )


def delta_of(message: Mapping[str, Any], choice: int = 0, tokens: Tokens | None = None) -> Delta:
    """A whole assistant message as one delta."""
    calls = tuple(
        CallDelta(index, str(call.get("id") or ""), call["function"]["name"], call["function"]["arguments"])
        for index, call in enumerate(message.get("tool_calls") or ())
    )
    content = message.get("content")
    reasoning = message.get("reasoning_content") or ""
    return Delta(choice, reasoning, content if isinstance(content, str) else "", calls, tokens or Tokens())


async def replayed(asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> AsyncGenerator[Event, None]:
    """The events of an answer that was given before."""
    for request, completion in zip(asked, completions, strict=True):
        tokens = completion.tokens if request.logprobs else None
        delta = delta_of(completion.call.message, completion.choice, tokens)
        yield replace(delta, prompt_tokens=completion.call.prompt_tokens)
        yield completion


async def with_last_part(body: AsyncIterator[bytes], told: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    """The parts of a streamed body. The one that comes once all is ``told`` is marked as the last one."""
    try:
        async for part in body:
            yield LastPart(part) if told() else part
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()
