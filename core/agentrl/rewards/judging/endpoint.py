"""The endpoint of a judge: one question in, a verdict of the right form out, inside a deadline and a budget.

The connection is opened with the first question of a burst and closed after its last, whatever the event loop: a judge
is asked when groups end, and between them there is nothing to keep open or to close at the end of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import json
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from agentrl.clients import client_library
from agentrl.costs.contract import UNMETERED, Meter, Stage, Usage
from agentrl.errors import ConfigError, RewardError, one_line, shortened
from agentrl.rewards.judging.cache import Verdicts
from agentrl.rewards.judging.settings import JudgeSettings
from agentrl.rewards.judging.spending import Spending

__all__ = ["JudgeEndpoint", "Malformed"]

_RETRIED = frozenset({408, 409, 429})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SHOWN = 300
_FOLDER = "judge"
"""The subfolder of a run that holds what its judges have cost and said."""

_NOT_ITS_OWN = {"budget", "cache", "concurrency", "max_retries", "timeout"}
"""Keys that a run may change and go on counting."""

Verdict = TypeVar("Verdict")


class Malformed(ValueError):
    """What a judge answered is no verdict; the message says why."""


class JudgeEndpoint:
    """A model at an endpoint that is asked for verdicts. All may be asked at once, on any event loop."""

    def __init__(self, settings: JudgeSettings, environ: Mapping[str, str] | None = None) -> None:
        """Raises ``ConfigError`` where the environment does not hold the key."""
        self._settings = settings
        self._key = _key(settings, os.environ if environ is None else environ)
        kept = None if settings.cache in (None, "run") else Path(str(settings.cache)).expanduser()
        self._verdicts = Verdicts(kept)
        self.spending = Spending(settings.budget)
        self._meter: Meter = UNMETERED
        self._asking: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = {}
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}

    def keep_in(self, folder: Path) -> None:
        """Keep what the judge has cost in the run's ``folder``, and its verdicts where the settings say so."""
        identity = self._settings.model_dump(mode="json", exclude=_NOT_ITS_OWN)
        self.spending.keep_in(folder / _FOLDER / f"spent-{_digest(identity)[:12]}.json")
        if self._settings.cache == "run":
            self._verdicts.folder = folder / _FOLDER / "verdicts"

    def report_to(self, meter: Meter) -> None:
        """Tell ``meter`` of every request."""
        self._meter = meter

    async def ask(
        self,
        system: str,
        user: str,
        schema: dict[str, Any],
        read: Callable[[str], Verdict],
        *,
        stage: Stage = "rollout",
    ) -> Verdict:
        """What ``read`` makes of the judge's answer to ``user`` under the instructions ``system``.

        ``schema`` is the JSON schema of the answer, and ``read`` raises ``Malformed`` for a text that is no verdict.
        ``stage`` is the part of the run that pays for it. Equal questions are asked once. Raises ``RewardError`` where
        no verdict comes, and ``BudgetError``.
        """
        body = _body(self._settings, system, user, schema)
        if self._settings.cache is None:
            return await self._answered(body, stage, read, lambda text: None)
        digest = _digest({"url": self._settings.url, "body": body})
        asking = asyncio.get_running_loop(), digest
        lock = self._asking.setdefault(asking, asyncio.Lock())
        try:
            async with lock:
                known = self._verdicts.get(digest)
                if known is not None:
                    with contextlib.suppress(Malformed):  # Somebody may have edited its file.
                        return read(known)
                return await self._answered(body, stage, read, lambda text: self._verdicts.put(digest, text, body))
        finally:
            if not lock.locked() and self._asking.get(asking) is lock:
                del self._asking[asking]

    async def _answered(
        self, body: dict[str, Any], stage: Stage, read: Callable[[str], Verdict], keep: Callable[[str], None]
    ) -> Verdict:
        async with self._connected() as connection, connection.places:
            problem = _Problem("it has not answered")
            try:
                async with asyncio.timeout(self._settings.timeout):
                    for attempt in range(self._settings.max_retries + 1):
                        await connection.wait()
                        told = await self._tried(connection, body, stage)
                        if isinstance(told, str):
                            try:
                                verdict = read(told)
                            except Malformed as error:
                                problem = _Problem(f"it gave no verdict: {error}: {self._shown(told)}", malformed=True)
                            else:
                                keep(told)
                                return verdict
                        else:
                            problem = told
                            if not problem.malformed:
                                connection.pause(problem.pause, attempt)
            except TimeoutError:
                raise self._error(problem, f"within {self._settings.timeout:g} s, all tries included") from None
            raise self._error(problem, f"in {self._settings.max_retries + 1} tries")

    async def _tried(self, connection: _Connection, body: dict[str, Any], stage: Stage) -> str | _Problem:
        """The text that the endpoint answered once, or what is wrong that may be right another time."""
        library = client_library()
        self.spending.begin_request()
        usage: object = None
        began = time.monotonic()
        try:
            response = await connection.client.post(f"{self._settings.url}/chat/completions", json=body)
            usage = _usage(response)
        except (library.TransportError, library.DecodingError) as error:
            return _Problem(f"it cannot be reached: {self._shown(one_line(error) or type(error).__name__)}")
        finally:
            used = Usage.of_answer(usage, time.monotonic() - began)
            self._meter.spend(stage, "judge", self._settings.model, used)
        if response.status_code in _RETRIED or response.status_code >= 500:
            return _Problem(
                f"it answered {response.status_code}: {self._shown(response.text)}",
                pause=_retry_after(response.headers.get("retry-after")),
            )
        if response.status_code != 200:
            raise RewardError(
                f"the judge at {self._settings.url} answered {response.status_code}: {self._shown(response.text)}",
                fix=self._fix(response.status_code),
                fingerprint=f"the judge answered {response.status_code}",
            )
        try:
            text = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            return _Problem(f"it gave no verdict: no text in {self._shown(response.text)}", malformed=True)
        self.spending.end_request(usage)
        return text

    def _error(self, problem: _Problem, limits: str) -> RewardError:
        fix = (
            "set `format` of the reward to what the endpoint knows, or take a model that keeps to it"
            if problem.malformed
            else "see that the endpoint runs; lower the reward's `concurrency`, or raise its `timeout` or `max_retries`"
        )
        kind = "malformed" if problem.malformed else problem.text.partition(":")[0]
        return RewardError(
            f"the judge {self._settings.model!r} at {self._settings.url} gave no verdict {limits}: {problem.text}",
            fix=fix,
            fingerprint=f"the judge gave no verdict: {kind}",
        )

    def _fix(self, status: int) -> str:
        variable = self._settings.key_variable
        if status in (401, 403):
            return f"see the key in {variable}" if variable else "name the variable of its key in `api_key_env`"
        if status == 404:
            return "check `url`, which often ends in /v1, and `model` of the reward"
        return (
            "where it refuses `response_format`, `temperature` or `max_tokens`, set the reward's `format: text`, "
            "`temperature: null` or `max_tokens: null`"
        )

    def _shown(self, text: str) -> str:
        """``text`` of the endpoint for a message: some endpoints repeat the key."""
        return shortened(one_line(text if self._key is None else text.replace(self._key, "…")), _SHOWN)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[_Connection]:
        """The connection of this event loop, open while anybody uses it."""
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            client = client_library().AsyncClient(
                verify=_certificates(),
                headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
                timeout=self._settings.timeout,
                limits=client_library().Limits(max_connections=None),
            )
            connection = self._connections[loop] = _Connection(client, self._settings.concurrency)
        connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            if not connection.users:
                del self._connections[loop]
                await connection.client.aclose()


class _Problem:
    """Why an attempt brought no verdict, and for how many seconds the endpoint wants to be left alone."""

    def __init__(self, text: str, *, pause: float | None = None, malformed: bool = False) -> None:
        self.text = text
        self.pause = pause
        self.malformed = malformed


class _Connection:
    """A client of one event loop, with the places for requests, and the pause that all of them keep."""

    def __init__(self, client: Any, concurrency: int) -> None:
        self.client = client
        self.places = asyncio.Semaphore(concurrency)
        self.users = 0
        self._not_before = 0.0

    def pause(self, seconds: float | None, attempt: int) -> None:
        """Let no request begin for ``seconds``; where the endpoint named none, for longer with every attempt."""
        if seconds is None:
            # By chance, so that those that failed together do not come again together.
            seconds = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
        self._not_before = max(self._not_before, asyncio.get_running_loop().time() + seconds)

    async def wait(self) -> None:
        """Return when the pause is over, however often it is prolonged meanwhile."""
        loop = asyncio.get_running_loop()
        while self._not_before > loop.time():  # noqa: ASYNC110 (the moment is known, and an event would only add to it)
            await asyncio.sleep(self._not_before - loop.time())


@lru_cache(1)
def _certificates() -> ssl.SSLContext:
    """Whom to trust. Made once, because it takes a third of a second."""
    context: ssl.SSLContext = client_library().create_ssl_context()
    return context


def _key(settings: JudgeSettings, environ: Mapping[str, str]) -> str | None:
    name = settings.key_variable
    if name is None:
        return None
    key = environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {name}, which holds the key of the judge at {settings.url}, is not set",
            fix="set it, or name another in `api_key_env` of the reward (null where the endpoint needs no key)",
            key="reward.api_key_env",
        )
    return key


def _body(settings: JudgeSettings, system: str, user: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request for one verdict."""
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.max_tokens is not None:
        body["max_tokens"] = settings.max_tokens
    if settings.format == "json_schema":
        form = {"name": "verdict", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif settings.format == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def _usage(response: Any) -> object:
    """What an answer says of its tokens; ``None`` where it says nothing."""
    try:
        return response.json().get("usage")
    except (ValueError, AttributeError):
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _retry_after(header: str | None) -> float | None:
    """The seconds of a ``Retry-After``, written as seconds or as a date; ``None`` where it is neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
