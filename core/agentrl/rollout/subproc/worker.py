"""One live worker: started with its agent, then episodes in and what their agents returned out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.clients import direct_loopback
from agentrl.errors import AgentError, AgentRLError, ConfigError, EpisodeTimeout, PluginError, PolicyError, WorkerError
from agentrl.plugins.entries import core_version
from agentrl.rollout.contract import Activity, AgentFacts, ProcessEndpoint
from agentrl.rollout.failures import RaisedElsewhere, too_late
from agentrl.rollout.subproc.contract import Carrier
from agentrl.rollout.subproc.interpreter import AgentLaunch, wrong_protocol
from agentrl.rollout.subproc.output import WorkerLog
from agentrl.rollout.subproc.process import KILLED_WITHIN_S, PRINTED, Ended, KillReason, WorkerLimits, WorkerProcess
from agentrl.worker.protocol import PROTOCOL, Message, encode, error_from_json, unfit, with_parts, with_traceback

__all__ = ["EpisodeMessage", "Worker", "WorkerStarter", "failure_of", "load"]

_FIX = "what it printed is in the run's logs/workers"


@dataclass(frozen=True, slots=True)
class WorkerStarter:
    """Starts the workers of a run: processes of the same kind with the same agent."""

    spec: AgentLaunch
    logs: Path | None
    """The folder of the run's logs; ``None`` where what agents print is not kept."""
    open_worker_endpoint: Callable[[], ProcessEndpoint]
    carrier: Carrier
    limits: WorkerLimits
    warn: Callable[[str], None]

    async def start(self, number: int) -> Worker:
        """Start worker ``number`` and load the agent in it.

        Raises ``ConfigError``, ``PluginError`` or ``WorkerError`` where that fails; its process has ended then.
        """
        endpoint = self.open_worker_endpoint()
        try:
            started = await self.carrier.launch(direct_loopback(self.spec.env, endpoint.base_url))
            process = WorkerProcess(started, log=self._log(number), limits=self.limits)
            facts = await load(process, self.spec, endpoint.base_url, endpoint.api_key, self.limits)
        except BaseException:
            endpoint.close()
            raise
        return Worker(number, process, facts, endpoint, self.limits, self.warn)

    def _log(self, number: int) -> WorkerLog | None:
        if self.logs is None:
            return None
        return WorkerLog(self.logs / "workers" / f"worker-{number}.log", self.limits.log, self.warn)


@dataclass(frozen=True, slots=True)
class EpisodeMessage:
    """The ``run`` message of an episode, encoded once for all attempts to send it."""

    id: int
    line: bytes = field(repr=False)
    """The encoded ``run`` message."""
    api_key: str = field(repr=False)
    """The key of the episode's session."""


class Worker:
    """Runs episodes in a process that has imported the agent."""

    def __init__(
        self,
        number: int,
        process: WorkerProcess,
        facts: AgentFacts,
        endpoint: ProcessEndpoint,
        limits: WorkerLimits,
        warn: Callable[[str], None],
    ) -> None:
        self.number = number
        self.process = process
        self.facts = facts
        self._endpoint = endpoint
        self._limits = limits
        self._warn = warn
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._latest: int | None = None
        self._heard = 0
        self._blocker: int | None = None
        self.retired: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once it takes no more episodes because calls in it never end; it stops after its last episode."""
        self._stopping: asyncio.Task[None] | None = None
        process.receive = self._take
        process.gone.add_done_callback(self._fail_all)

    @property
    def alive(self) -> bool:
        """Whether it accepts further episodes."""
        return self.process.alive and not self.retired.done()

    async def run(self, message: EpisodeMessage, *, deadline_s: float, activity: Callable[[], Activity]) -> Any:
        """Run the episode of ``message`` and return what its agent returned; see ``AgentRunner.run``.

        The agent's code has ended when this returns, raises or is cancelled.
        """
        answer = self._send(message)
        try:
            if await _done(answer, deadline_s):
                return answer.result()
            raise await self._overdue(message.id, answer, too_late(deadline_s, activity()))
        except asyncio.CancelledError:
            await self._abandon(message.id, answer)
            raise
        finally:
            self._forget(message, answer)

    def _take(self, message: Message) -> None:
        match message["type"]:
            case "done":
                self._answer(message["id"], with_parts(message["returned"], message.get("parts", {})), None)
            case "failed":
                self._answer(message["id"], None, _error(message["error"]))
            case "blocked":
                self._blocker = message["id"]
                self._warn(str(message["message"]))
            case "held":
                self._retire()
            case other:
                raise ValueError(f"no message of a worker: {other!r}")

    def _send(self, message: EpisodeMessage) -> asyncio.Future[Any]:
        self._endpoint.attach(message.api_key)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[message.id] = answer
        self._latest = message.id
        self.process.output.allow()
        self.process.send(message.line)
        return answer

    def _forget(self, message: EpisodeMessage, answer: asyncio.Future[Any]) -> None:
        self._endpoint.detach(message.api_key)
        self.process.output.allow()
        del self._answers[message.id]
        if answer.done():
            answer.exception()  # Marks it as seen where nobody asks any more.
        self._end_if_idle()

    def _retire(self) -> None:
        if not self.retired.done():
            self.retired.set_result(None)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.retired.done() and not self._answers and self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self.process.stop(self._limits.stop_s))

    def _answer(self, episode: int, returned: Any, error: AgentRLError | None) -> None:
        self._heard += 1
        self._blocker = None  # The loop moves again.
        answer = self._answers.get(episode)
        if answer is None or answer.done():
            return  # An answer given twice, as by an agent that has forked.
        if error is None:
            answer.set_result(returned)
        else:
            answer.set_exception(error)

    async def _overdue(self, episode: int, answer: asyncio.Future[Any], error: EpisodeTimeout) -> AgentRLError:
        """End an episode past its deadline, and return its error: the timeout, unless another episode is to blame."""
        await self._cancel(episode, answer, error)
        failure = answer.exception() if await _done(answer, KILLED_WITHIN_S) else None
        return failure if isinstance(failure, WorkerError) else error

    async def _abandon(self, episode: int, answer: asyncio.Future[Any]) -> None:
        """End an episode whose run was interrupted."""
        error = EpisodeTimeout("the run was interrupted")
        try:
            await self._cancel(episode, answer, error)
            await _done(answer, KILLED_WITHIN_S)
        except asyncio.CancelledError:
            self.process.kill(KillReason("did not end when the run was interrupted", episode, error))
            raise

    async def _cancel(self, episode: int, answer: asyncio.Future[Any], error: EpisodeTimeout) -> None:
        """Cancel the agent; where it does not end within ``grace_s``, kill the process."""
        if answer.done():
            return
        heard = self._heard
        self.process.send(encode({"type": "cancel", "id": episode}))
        # Code that is not async cannot be cancelled, so there is nothing to wait for.
        if not (self.facts.is_async and await _done(answer, self._limits.grace_s)):
            self.process.kill(self._kill_reason(episode, error, moved=self._heard > heard))

    def _kill_reason(self, episode: int, error: EpisodeTimeout, *, moved: bool) -> KillReason:
        """Why the process is killed that does not end ``episode``, and who is to blame as far as that can be known.

        ``moved`` says whether the process has answered for another episode since it was told to cancel this one.
        """
        blocker = self._blocker
        if blocker is not None and blocker != episode and blocker in self._answers:
            reason = "blocked its event loop past an episode's deadline"
            return KillReason(reason, blocker, EpisodeTimeout(f"the agent {reason}", fix=error.fix))
        known = len(self._answers) == 1 or blocker == episode or moved or not self.facts.is_async
        return KillReason("did not end an episode past its deadline", episode if known else None, error)

    def _fail_all(self, gone: asyncio.Future[str]) -> None:
        self._endpoint.close()
        waiting = {episode: answer for episode, answer in self._answers.items() if not answer.done()}
        if len(waiting) > 1:
            self._warn(f"worker {self.number} {gone.result()}; the episodes in it are run again")
        for episode, answer in waiting.items():
            answer.set_exception(self._failure_of(episode, len(waiting) - 1, gone.result()))

    def _failure_of(self, episode: int, others: int, how: str) -> AgentRLError:
        if self.process.lost is not None:
            return WorkerError(f"the process of the episode {how}", fingerprint="the machine of a process was lost")
        if self.process.kill_reason is None and self.process.unread and episode == self._latest:
            return WorkerError(f"the process {how}, before it had read of this episode")
        return failure_of(episode, others, how, self.process.kill_reason)


async def _done(answer: asyncio.Future[Any], seconds: float) -> bool:
    """Whether ``answer`` comes within ``seconds``."""
    await asyncio.wait({answer}, timeout=seconds)
    return answer.done()


def _error(error: Mapping[str, Any]) -> AgentRLError:
    raised = RaisedElsewhere(
        error["message"],
        api_error=bool(error.get("api_error")),
        cut_off=bool(error.get("cut_off")),
        fingerprint=error.get("fingerprint"),
    )
    if error["kind"] is None:
        return with_traceback(raised, error)
    ours = error_from_json(error)
    ours.__cause__ = raised if isinstance(ours, PolicyError) else None
    return ours


async def load(
    process: WorkerProcess, spec: AgentLaunch, base_url: str, api_key: str, limits: WorkerLimits
) -> AgentFacts:
    """Have a process that was just started import its agent, and return what is known of it.

    ``base_url`` and ``api_key`` are those of its process endpoint. Raises as ``WorkerStarter.start`` does.
    """
    try:
        await process.connect()
        async with asyncio.timeout(limits.start_s):
            return await _greet(process, spec, base_url, api_key)
    except BaseException as error:
        process.kill(KillReason("did not load its agent"))
        how = process.gone.result() if await process.ends_within(KILLED_WITHIN_S) else "it cannot be ended"
        if isinstance(error, Ended) and process.lost is not None:
            raise WorkerError(f"the process of agent {spec.reference!r} {how}") from None
        if isinstance(error, Ended):
            raise await process.diagnose(str(error)) from None
        if isinstance(error, TimeoutError):
            raise PluginError(
                f"the process of agent {spec.reference!r} was not ready within {limits.start_s:g} s: {how}",
                fix="have its module do in run() what takes long when it is imported",
            ) from None
        raise


async def _greet(process: WorkerProcess, spec: AgentLaunch, base_url: str, api_key: str) -> AgentFacts:
    hello = await process.ask({"type": "hello", "protocol": PROTOCOL, "core": core_version()})
    if hello.get("protocol") != PROTOCOL:
        raise wrong_protocol(spec, hello)
    if found := unfit(spec.kwargs, "agent.kwargs"):
        raise ConfigError(f"JSON cannot carry {found}", fix="use plain JSON values, or rollout.mode=inline")
    answer = await process.ask(
        {
            "type": "load",
            "agent": spec.reference,
            "kwargs": spec.kwargs,
            "disabled": spec.disabled,
            "outcomes": spec.outcomes,
            "endpoint": {"base_url": base_url, "api_key": api_key},
        }
    )
    if answer["type"] == "refused":
        raise _refusal(answer["error"])
    return AgentFacts(is_async=bool(answer["is_async"]), returns_answer=bool(answer["returns_answer"]))


def _refusal(error: Any) -> AgentRLError:
    """The error of an agent that does not load: the config's where it says so, else its plugin's."""
    refused = error_from_json(error)
    return refused if isinstance(refused, ConfigError) else PluginError(refused.message, fix=refused.fix)


def failure_of(episode: int, others: int, how: str, kill_reason: KillReason | None) -> AgentRLError:
    """The error of ``episode`` when the process ends in which ``others`` other episodes were running.

    An episode that was alone in the process has brought it down. Among several the culprit is unknown: each fails with
    ``WorkerError``, which is tried again alone, so that the next time the culprit is known.
    """
    culprit = kill_reason.culprit if kill_reason else None
    if kill_reason is not None and kill_reason.error is not None and culprit == episode:
        return kill_reason.error
    if culprit is None and not others:
        what = "the agent's process"
        return AgentError(f"{what} {how}", fix=_FIX, fingerprint=f"{what} {_without_lines(how)}")
    return WorkerError(
        f"the process of this and {others} other episodes {how}",
        fix=_FIX,
        fingerprint=f"the process of several episodes {_without_lines(how)}",
    )


def _without_lines(how: str) -> str:
    return how.partition(PRINTED)[0]
