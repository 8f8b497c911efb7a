"""Sessions over HTTP: opened, rewarded, read and closed by programs that agentrl does not start.

Whoever has the admin key opens sessions and sees all of them. A session's own key, which its opener is given, posts its
rewards, reads and closes it; the capture token in its base URL does none of that. A session that ends, whichever way,
becomes an ``Episode``: nothing that was sampled or rewarded is lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agentrl.errors import AgentRLError, GatewayError, near_matches, one_line, shortened, shown
from agentrl.gateway.contract import Reply, Route, SessionSettings
from agentrl.gateway.dialects.writing import openai_error, written
from agentrl.gateway.groups import SessionGroups
from agentrl.gateway.resource import Resource, ResourceRequest
from agentrl.gateway.service_schema import description
from agentrl.gateway.session import Session, bearer, session_of
from agentrl.rollout.contract import Episode, EpisodeKey, Failure

__all__ = ["Ending", "ServiceLimits", "SessionService"]

Ending = Literal["closed", "expired", "stopped"]
"""How a session ended: by its client, because nobody used it, or with the service."""

_SESSIONS = Route("/sessions", ("POST", "GET"))
_SESSION = Route("/sessions/{id}", ("GET",))
_CALLS = Route("/sessions/{id}/calls", ("GET",))
_REWARDS = Route("/sessions/{id}/rewards", ("POST",))
_CLOSE = Route("/sessions/{id}/close", ("POST",))
_GROUP = Route("/groups/close", ("POST",))

_CURRENT = "current"
"""Stands in a path for the session whose key the request has."""
_LAST = "last"
"""Stands in a reward for the call that was completed last, of those whose answers the client has."""
_LONGEST_NAME = 200
_LONGEST_FAILURE = 2000
_REMEMBERED = 100_000
"""How many ended sessions can still be asked for."""


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """How many sessions there may be, and how long one is kept that nobody uses."""

    sessions: int = 1000
    """Most sessions that are open at once; a further one is a 429."""
    idle_s: float = 3600.0
    """Seconds without a request or a call under way after which a session expires. A group that is waited for expires
    as long after the last of its sessions was opened or ended."""


@dataclass(eq=False)
class _Open:
    """An open session, and what its client has said of it."""

    session: Session
    key: EpisodeKey
    group: str | None
    metadata: Mapping[str, Any]
    created: float
    """Seconds since the epoch."""
    began: float
    """By the clock of the service."""
    reward: float | None = None
    call_rewards: dict[str, float] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    """Named parts of the rewards, by response id; those of the episode's reward under an empty one."""
    ending: Future[_Ended] | None = None
    """Set by whoever ends it, for others who would."""


@dataclass(frozen=True)
class _Ended:
    """What is remembered of a session that has ended."""

    digest: bytes
    """Of its key."""
    key: EpisodeKey
    summary: Mapping[str, Any]
    """Without its metadata."""


class SessionService(Resource):
    """Serves sessions of a gateway; ``Gateway.attach`` takes it. Safe to use from any thread."""

    routes = (_SESSIONS, _SESSION, _CALLS, _REWARDS, _CLOSE, _GROUP)

    def __init__(
        self,
        open_session: Callable[[SessionSettings], Session],
        settings: Callable[[], SessionSettings],
        *,
        admin_key: str,
        finished: Callable[[Episode], Awaitable[None]],
        recall: Callable[[EpisodeKey], Episode],
        opened: Callable[[EpisodeKey], None] = lambda key: None,
        group_size: int | None = None,
        whole: Callable[[EpisodeKey], None] = lambda key: None,
        base_url: Callable[[Session, str], str] = lambda session, host: session.base_url,
        limits: ServiceLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``settings`` gives those of a session that is opened now, its seed key and whether it is trained aside.

        ``finished`` stores an episode durably, and ``recall`` reads one that is stored; it is called on a thread.
        ``opened`` is called, from any thread, with the key of the episode that a new session will be, and ``whole`` so
        with a key of a group once all its sessions have ended and are stored, and no other can join it: see
        ``SessionGroups``, whose size is ``group_size``.
        ``base_url`` gives the URL that a client of the request's ``Host`` reaches a session at.
        """
        self._open_session = open_session
        self._settings = settings
        self._admin = _digest(admin_key)
        self._finished = finished
        self._recall = recall
        self._base_url = base_url
        self._limits = limits or ServiceLimits()
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._groups = SessionGroups(group_size)
        self._whole = whole
        self._opened = opened
        self._counts: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def counts(self) -> Mapping[str, int]:
        """How many sessions were ``opened``, and how many have ended as ``closed``, ``expired`` and ``stopped``.

        ``unrewarded`` are those of the expired that had no reward, and ``open`` those that have not ended.
        """
        with self._lock:
            return {**self._counts, "open": len(self._open)}

    async def answer(self, request: ResourceRequest) -> Reply:
        """Answer one request; see ``describe`` for what there is."""
        given = _credentials(request.headers)
        if request.route is _SESSIONS:
            self._check_admin(given)
            return self._create(request) if request.method == "POST" else self._list()
        if request.route is _GROUP:
            self._check_admin(given)
            return _json(self._close_group(request.body))
        name = request.parameters["id"]
        found = self._find(name, given)
        if request.route is _SESSION:
            return _json(await self._told(found))
        if request.route is _CALLS:
            return _json(await self._recorded(found))
        if request.route is _CLOSE:
            return _json(await self._close(found, request.body))
        return _json(self._rewarded(found, request.body))

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error as OpenAI's protocols do."""
        return Reply(error.status, written({"error": openai_error(error)}))

    def describe(self) -> Mapping[str, Any]:
        """Its part of the OpenAPI document."""
        return description()

    async def expire(self) -> None:
        """End the sessions and groups that nobody has used for too long. To be called every now and then."""
        with self._lock:
            expired = list(self._groups.expire(self._clock() - self._limits.idle_s))
            idle = [each for each in self._open.values() if each.session.idle_s >= self._limits.idle_s]
        for key in expired:
            self._whole(key)
        for each in idle:
            await self._end(each, "expired")

    async def stop(self) -> None:
        """End every session, and open no more. Raises what storing one of the episodes raised, once all were tried."""
        with self._lock:
            self._stopping = True
            left = list(self._open.values())
        done = await asyncio.gather(*(self._end(each, "stopped") for each in left), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error

    # --- credentials

    def _is_admin(self, given: str) -> bool:
        return hmac.compare_digest(_digest(given), self._admin)

    def _check_admin(self, given: str) -> None:
        if not self._is_admin(given):
            raise _unauthorised("the admin key", given)

    def _find(self, name: str, given: str) -> _Open | _Ended:
        """The session that a path names, if the request has its key or the admin's."""
        is_admin = self._is_admin(given)
        name = (session_of(given) or name) if name == _CURRENT else name
        with self._lock:
            found: _Open | _Ended | None = self._open.get(name) or self._ended.get(name)
        if found is not None and (is_admin or _is_key(found, given)):
            return found
        if not is_admin:
            raise _unauthorised("the key of this session or the admin key", given)
        raise GatewayError(
            f"there is no session {shown(name, 80)}",
            status=404,
            code="no_session",
            param="id",
            fix="GET /v1/sessions lists those that are open",
        )

    # --- opening

    def _create(self, request: ResourceRequest) -> Reply:
        body = _only(request.body, ("training", "group", "metadata"))
        training = _flag(body, "training", default=True)
        group = _name(body, "group")
        metadata = _metadata(body)
        with self._lock:
            if self._stopping:
                raise GatewayError("the service is being stopped", status=503, code="stopping")
            if len(self._open) >= self._limits.sessions:
                raise GatewayError(
                    f"{len(self._open)} sessions are open, as many as there may be",
                    status=429,
                    code="too_many_sessions",
                    fix="close some, or start the service with a larger --max-sessions (serve.max_sessions)",
                    retry_after=self._until_one_expires(),
                )
            key = self._groups.open("train" if training else "eval", group, self._clock())
            settings = self._settings()
            # A name may come again where groups have a size.
            task = key.group if group is None or self._groups.size is not None else group
            seed_key = (*settings.seed_key, key.phase, task, key.sample)
            settings = replace(settings, training=training, seed_key=seed_key)
            session = self._open_session(settings)
            made = _Open(session, key, group, metadata, self._now(), self._clock())
            self._open[session.id] = made
            self._counts["opened"] += 1
            self._opened(key)
        url = self._base_url(session, request.headers.get("host", ""))
        return _json({**self._summary(made), "base_url": url, "api_key": session.api_key}, 201)

    def _until_one_expires(self) -> float:
        return max(1.0, self._limits.idle_s - max(each.session.idle_s for each in self._open.values()))

    # --- rewards

    def _rewarded(self, found: _Open | _Ended, given: Mapping[str, Any]) -> dict[str, Any]:
        body = _only(given, ("reward", "call", "parts"))
        reward = _reward(body)
        parts = _parts(body)
        call = _name(body, "call")
        with self._lock:
            if isinstance(found, _Ended) or found.ending is not None:
                raise GatewayError(
                    "the session has ended, and its episode is stored",
                    status=409,
                    code="session_closed",
                    fix="post rewards before the session is closed or expires",
                )
            if call is not None:
                call = _known_call(found.session, call)
            if (call is None and found.call_rewards) or (call is not None and found.reward is not None):
                raise GatewayError(
                    "rewards of single calls and a reward of the whole episode exclude each other",
                    status=409,
                    code="mixed_rewards",
                    param="call",
                    fix="post one kind only; an episode's reward is the sum of those of its calls",
                )
            if call is None:
                previous, found.reward = found.reward, reward
            else:
                previous = found.call_rewards.get(call)
                total = sum(map(abs, {**found.call_rewards, call: reward}.values()))
                if not math.isfinite(total):
                    raise _invalid("reward", body["reward"], "makes the sum of the episode's rewards infinite")
                found.call_rewards[call] = reward
            found.parts[call or ""] = parts
            found.session.touch()
            return {"object": "reward", "session": found.session.id, "call": call, "reward": reward} | {
                "previous": previous
            }

    # --- ending

    async def _close(self, found: _Open | _Ended, given: Mapping[str, Any]) -> Mapping[str, Any]:
        body = _only(given, ("failure",))
        failure = _name(body, "failure", longest=_LONGEST_FAILURE)
        if isinstance(found, _Ended):
            return await self._told(found)
        if failure is not None and (found.reward is not None or found.call_rewards):
            raise GatewayError(
                "the session has rewards, and an episode that failed has none",
                status=409,
                code="mixed_rewards",
                param="failure",
                fix="close it without a failure, or without having rewarded it",
            )
        return await self._told(await self._end(found, "closed", failure))

    def _close_group(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        body = _only(given, ("group",))
        name = _name(body, "group")
        if name is None:
            raise GatewayError("group is missing", param="group", code="invalid_value", fix="send the group's name")
        with self._lock:
            closed = self._groups.close(name)
        for key in closed.whole:
            self._whole(key)
        return {"object": "group", "group": name, "sessions": closed.sessions, "open": closed.open}

    async def _end(self, open_: _Open, ending: Ending, failure: str | None = None) -> _Ended:
        """End a session and store its episode, once, whoever else would end it meanwhile."""
        with self._lock:
            ended, is_first = open_.ending, open_.ending is None
            if ended is None:
                ended = open_.ending = Future()
        if is_first:  # In a task of its own: a client that leaves meanwhile does not undo it.
            task = asyncio.ensure_future(self._store(open_, ended, ending, failure))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(asyncio.wrap_future(ended))

    async def _store(self, open_: _Open, ended: Future[_Ended], ending: Ending, failure: str | None) -> None:
        session = open_.session
        try:
            session.close()
            await session.deliveries_known()
            episode = self._episode(open_, ending, failure)
            await self._finished(episode)
        except Exception as error:
            with self._lock:
                open_.ending = None  # Whoever ends it next tries again.
            ended.set_exception(_not_stored(error))
            return
        summary = self._summary(open_, ending, episode)
        del summary["metadata"]  # It may be large, and is in the episode.
        remembered = _Ended(_digest(session.api_key), open_.key, summary)
        with self._lock:
            self._open.pop(session.id, None)
            self._ended[session.id] = remembered
            self._counts[ending] += 1
            self._counts["unrewarded"] += ending == "expired" and episode.reward is None
            is_whole = self._groups.ended(open_.key, self._clock())
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
        if is_whole:
            self._whole(open_.key)
        ended.set_result(remembered)

    def _episode(self, open_: _Open, ending: Ending, failure: str | None) -> Episode:
        session = open_.session
        rewards, reward = dict(open_.call_rewards), open_.reward
        if rewards:
            reward = sum(rewards.values())
        failed = failure if failure is not None or reward is not None else _REASONS[ending]
        parts: dict[str, float] = {}
        for each in open_.parts.values():
            for name, value in each.items():
                parts[name] = parts.get(name, 0.0) + value
        data = {"session": session.id, "group": open_.group, "metadata": dict(open_.metadata)}
        version = 0 if session.settings.versions is None else session.settings.versions[0]
        episode = Episode(
            open_.key,
            data,
            "rewarded",
            reward,
            call_rewards=rewards,
            reward_parts=parts,
            calls=session.calls,
            tree=session.tree,
            seconds=self._clock() - open_.began,
            started=open_.created,
            version=version,
        )
        if failed is not None:
            why = Failure("agent", one_line(failed))
            return replace(episode, outcome="failed", reward=None, call_rewards={}, reward_parts={}, failure=why)
        return episode if reward is not None else replace(episode, outcome="rejected")

    # --- reading

    def _list(self) -> Reply:
        with self._lock:
            listed = list(self._open.values())
            counts = {"open": len(listed), **{name: self._counts[name] for name in ("opened", "closed", "expired")}}
        return _json({"object": "list", "data": [self._summary(each) for each in listed], "counts": counts})

    def _summary(self, open_: _Open, ending: Ending | None = None, episode: Episode | None = None) -> dict[str, Any]:
        session = open_.session
        calls = session.calls
        expires = None if ending is not None else math.ceil(self._now() + self._limits.idle_s - session.idle_s)
        rewards = dict(open_.call_rewards)
        return {
            "id": session.id,
            "object": "session",
            "state": ending or "open",
            "training": session.settings.training,
            "group": open_.group,
            "metadata": open_.metadata,
            "created": int(open_.created),
            "expires": expires,
            "episode": str(open_.key),
            "calls": len(calls),
            "in_flight": session.in_flight,
            "prompt_tokens": sum(call.prompt_tokens for call in calls),
            "completion_tokens": sum(call.completion_tokens for call in calls),
            "reward": sum(rewards.values()) if rewards else open_.reward,
            "call_rewards": rewards,
            "outcome": None if episode is None else episode.outcome,
            "failure": None if episode is None or episode.failure is None else episode.failure.reason,
        }

    async def _told(self, found: _Open | _Ended) -> dict[str, Any]:
        """The summary of a session."""
        if isinstance(found, _Open):
            return self._summary(found)
        episode = await asyncio.to_thread(self._recall, found.key)
        return {**found.summary, "metadata": episode.data["metadata"]}

    async def _recorded(self, found: _Open | _Ended) -> dict[str, Any]:
        """The calls and the token tree of a session."""
        if isinstance(found, _Ended):
            episode = await asyncio.to_thread(self._recall, found.key)
            calls, spans, rewards = episode.calls, episode.tree.to_json(), episode.call_rewards
        else:
            calls, spans, rewards = found.session.calls, found.session.spans(), found.call_rewards
        listed = [
            {
                "id": call.id,
                "parent": call.parent,
                "request": dict(call.request),
                "message": dict(call.message),
                "finish_reason": call.finish_reason,
                "prompt_tokens": call.prompt_tokens,
                "completion_tokens": call.completion_tokens,
                "fork_reason": call.fork_reason,
                "delivered": call.delivered,
                "seconds": call.seconds,
                "reward": rewards.get(call.id),
            }
            for call in calls
        ]
        return {"object": "session.calls", "calls": listed, "spans": spans}


_REASONS: Mapping[Ending, str | None] = {
    "closed": None,
    "expired": "nobody used the session until it expired, and it has no reward",
    "stopped": "the service was stopped before the session had a reward",
}
"""Why an episode without a reward has failed; ``None`` where its client has rejected it."""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _is_key(found: _Open | _Ended, given: str) -> bool:
    expected = found.digest if isinstance(found, _Ended) else _digest(found.session.api_key)
    return hmac.compare_digest(_digest(given), expected)


def _credentials(headers: Mapping[str, str]) -> str:
    return bearer(headers.get("authorization", "")) or headers.get("x-api-key", "")


def _unauthorised(what: str, given: str) -> GatewayError:
    return GatewayError(
        f"this takes {what}, and the request has {'another' if given else 'none'}",
        status=401,
        code="invalid_api_key",
        fix="send it as `Authorization: Bearer KEY` or as `x-api-key`",
    )


def _not_stored(error: Exception) -> Exception:
    """What a client is told whose episode could not be stored, in which another attempt may succeed."""
    if not isinstance(error, AgentRLError):
        return error
    return GatewayError(f"the episode is not stored: {error.message}", status=503, code="not_stored", fix=error.fix)


def _only(body: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The fields of a body that are set. Raises ``GatewayError`` (400) for one that is not known."""
    for name in body:
        if name not in known:
            raise GatewayError(
                f"there is no field {shown(name, 80)}",
                param=shortened(name, 80),
                code="unknown_parameter",
                fix=near_matches(name, known),
            )
    return {name: value for name, value in body.items() if value is not None}


def _invalid(name: str, value: Any, what: str) -> GatewayError:
    return GatewayError(f"{name}={shown(value, 80)} {what}", param=name, code="invalid_value")


def _flag(body: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise _invalid(name, value, "is neither true nor false")
    return value


def _name(body: Mapping[str, Any], name: str, longest: int = _LONGEST_NAME) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and 1 <= len(value) <= longest):
        raise _invalid(name, value, f"is not a text of 1 to {longest} characters")
    return value


def _metadata(body: Mapping[str, Any]) -> Mapping[str, Any]:
    value = body.get("metadata", {})
    if not isinstance(value, dict):
        raise _invalid("metadata", value, "is not an object")
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise _invalid("metadata", value, f"cannot be stored: {error}") from error
    return value


def _reward(body: Mapping[str, Any]) -> float:
    if "reward" not in body:
        raise GatewayError("reward is missing", param="reward", code="invalid_value", fix="send a number")
    return _number("reward", body["reward"])


def _parts(body: Mapping[str, Any]) -> dict[str, float]:
    value = body.get("parts", {})
    if not isinstance(value, dict):
        raise _invalid("parts", value, "is not an object of numbers")
    return {name: _number(f"parts.{shortened(name, 80)}", part) for name, part in value.items()}


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _invalid(name, value, "is not a finite number")
    return number


def _known_call(session: Session, call: str) -> str:
    """The response id of a completed call, or of the last one.

    A stream that its client has left is the last one only where there is no other.
    """
    calls = session.calls
    known = [each.id for each in calls]
    if call == _LAST and known:
        return next((each.id for each in reversed(calls) if each.delivered), known[-1])
    if call in known:
        return call
    raise GatewayError(
        "no call of the session is complete" if not known else f"call={shown(call, 80)} is no call of the session",
        status=400 if known else 409,
        param="call",
        code="unknown_call",
        fix=f"name a response id, or {_LAST!r}",
    )


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, written(value))
