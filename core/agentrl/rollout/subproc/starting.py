"""From an interpreter to a worker with an agent in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import AgentRLError, ConfigError, PluginError
from agentrl.gateway.session import WorkerEndpoint
from agentrl.plugins.entries import core_version
from agentrl.rollout.subproc.contract import AgentFacts, AgentProcess, Limits
from agentrl.rollout.subproc.diagnosis import diagnose, wrong_protocol
from agentrl.rollout.subproc.fate import Sentence
from agentrl.rollout.subproc.log import WorkerLog
from agentrl.rollout.subproc.process import BURIAL_S, Ended, WorkerProcess
from agentrl.rollout.subproc.reaper import Reaper
from agentrl.rollout.subproc.worker import Worker
from agentrl.worker.protocol import PROTOCOL, error_from_json, unfit

__all__ = ["Starter", "load"]


@dataclass(frozen=True, slots=True)
class Starter:
    """Starts workers that are all alike."""

    spec: AgentProcess
    logs: Path | None
    """The folder of the run's logs; ``None`` where what agents print is not kept."""
    open_worker_endpoint: Callable[[], WorkerEndpoint]
    reaper: Reaper
    limits: Limits
    warn: Callable[[str], None]

    async def start(self, number: int) -> Worker:
        """Start worker ``number``. Raises ``ConfigError`` or ``PluginError``, and leaves no process then."""
        endpoint = self.open_worker_endpoint()
        try:
            process = WorkerProcess(self.spec, log=self._log(number), limits=self.limits, reaper=self.reaper)
            facts = await load(process, self.spec, endpoint.base_url, endpoint.api_key, self.limits)
        except BaseException:
            endpoint.close()
            raise
        return Worker(number, process, facts, endpoint, self.limits, self.warn)

    def _log(self, number: int) -> WorkerLog | None:
        if self.logs is None:
            return None
        return WorkerLog(self.logs / "workers" / f"worker-{number}.log", self.limits.log, self.warn)


async def load(process: WorkerProcess, spec: AgentProcess, base_url: str, api_key: str, limits: Limits) -> AgentFacts:
    """Have a process that was just started load its agent. Raises as ``Starter.start`` does."""
    try:
        await process.connect()
        async with asyncio.timeout(limits.start_s):
            return await _greet(process, spec, base_url, api_key)
    except BaseException as error:
        process.kill(Sentence("did not load its agent"))
        how = process.gone.result() if await process.ends_within(BURIAL_S) else "it cannot be ended"
        if isinstance(error, Ended):
            raise await diagnose(spec, str(error)) from None
        if isinstance(error, TimeoutError):
            raise PluginError(
                f"the process of agent {spec.reference!r} was not ready within {limits.start_s:g} s: {how}",
                fix="have its module do in run() what takes long when it is imported",
            ) from None
        raise


async def _greet(process: WorkerProcess, spec: AgentProcess, base_url: str, api_key: str) -> AgentFacts:
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
    """Whatever loading an agent raised is its plugin's or the config's fault."""
    refused = error_from_json(error)
    return refused if isinstance(refused, ConfigError) else PluginError(refused.message, fix=refused.fix)
