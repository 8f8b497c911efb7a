"""The backend of a run: which contract it keeps, and how it is built, started in time and stopped in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from agentrl.agents.watchdog import Holder, LoopWatchdog
from agentrl.config.models import Config
from agentrl.costs.contract import UNMETERED, Meter
from agentrl.errors import BackendError, ConfigError, PluginError
from agentrl.hosting.contract import Hosts
from agentrl.inference.adapter_folder import base_of, is_adapter, read_adapter
from agentrl.inference.contract import AdapterContext, Backend, BackendContext, ChatBackend, ChatContext, Sleeper
from agentrl.learner.adapters import plan_adapter
from agentrl.plugins import Plugins
from agentrl.training.engine_weights import Lender
from agentrl.training.merged_model import MergedModel, StartedOnMerged

__all__ = [
    "BackendParts",
    "ChatParts",
    "StopBlocked",
    "build_backend",
    "build_chat_backend",
    "check_takes_weights",
    "is_chat",
    "named_by_endpoint",
    "sleeper",
    "stop",
    "untrainable",
    "warned",
]

_STOP_S = 60.0
"""Seconds that a backend may take to stop."""
_WARN_S = 5.0
"""Seconds after which a backend that is stopping is worth a warning."""
_FIX_STOP = "have the backend's stop await instead of blocking"


class ChatParts(Protocol):
    """What a chat backend is built from."""

    @property
    def config(self) -> Config: ...

    @property
    def plugins(self) -> Plugins: ...


class BackendParts(ChatParts, Protocol):
    """What an inference engine is built from."""

    @property
    def model_folder(self) -> Path: ...


class StopBlocked(BackendError):
    """Raised inside an inference backend that blocked the event loop for longer than it may take to stop."""

    def __init__(self) -> None:
        super().__init__("the inference backend blocked the event loop instead of stopping", fix=_FIX_STOP)


def is_chat(config: Config, plugins: Plugins) -> bool:
    """Whether the backend of ``config`` is a ``ChatBackend``. Raises as ``Plugins.get`` does."""
    registered = plugins.get("backends", config.inference.backend.name)
    return isinstance(registered, type) and issubclass(registered, ChatBackend)


def _check_is_engine(config: Config, backend: object) -> None:
    """Raise ``PluginError`` where what ``config`` names has made a chat backend, and is no class to be known by."""
    if isinstance(backend, ChatBackend):
        raise PluginError(
            f"inference.backend={config.inference.backend.name!r} is a function that makes a chat backend, "
            f"{type(backend).__name__}, and was taken for one that makes an inference engine",
            fix="register the class itself: which contract it keeps is read before anything is built",
        )


def check_takes_weights(config: Config, plugins: Plugins) -> None:
    """Raise ``ConfigError`` for a backend that can only be evaluated."""
    if is_chat(config, plugins):
        raise untrainable(config)


def untrainable(config: Config) -> ConfigError:
    """The error for training with the backend of ``config``."""
    return ConfigError(
        f"inference.backend={config.inference.backend.name!r} cannot be trained: it takes no weights",
        fix="use it with `agentrl eval`, or train with inference.backend=torch",
    )


def named_by_endpoint(config: Config) -> Config:
    """``config``, of a chat backend, with the backend's key ``model``, where it is set, as the name of the model."""
    part = config.inference.backend
    name = part.options.get("model")
    if not isinstance(name, str):
        return config
    others = {key: value for key, value in part.options.items() if key != "model"}
    inference = config.inference.model_copy(update={"backend": type(part)(name=part.name, **others)})
    model = config.model.model_copy(update={"name": name})
    return config.model_copy(update={"model": model, "inference": inference})


def build_backend(
    parts: BackendParts,
    version: int,
    *,
    logs: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    trains: bool = True,
    hosts: Hosts | None = None,
    lender: Lender | None = None,
) -> Backend:
    """The backend that the config names, not started; the model folder's weights are of policy version ``version``.

    ``trains`` says whether it will be given new weights: whole ones, unless the config trains an adapter. ``lender``
    has them for servers that come back.

    ``logs`` is the folder for what the backend's processes print; ``None`` keeps nothing of it. ``say`` is called, from
    any thread, with what a long start waits for, and ``hosts`` start processes where the scheduler does. Raises
    ``ConfigError`` or ``PluginError`` for an unknown name or key.
    """
    part = parts.config.inference.backend
    folder, lora = parts.model_folder, parts.config.training.lora
    adapter, merged = None, None
    native = getattr(parts.plugins.get("backends", part.name), "takes_adapters", False)
    if native and (lora is not None or not trains):
        if is_adapter(folder):
            saved = read_adapter(folder)
            adapter = AdapterContext(saved.rank, saved.targets, folder)
            folder = base_of(folder)
        elif trains and lora is not None:
            adapter = AdapterContext(lora.rank, plan_adapter(folder, lora).targets)
    elif is_adapter(folder):
        merged = MergedModel(folder)
        folder = merged.folder
    context = BackendContext(
        model_folder=folder,
        version=version,
        seed=parts.config.seed,
        max_concurrency=parts.config.inference.concurrency or parts.config.rollout.concurrency,
        precision=parts.config.training.precision,
        options=part.options,
        logs=logs,
        say=say,
        timeout=parts.config.inference.timeout,
        in_flight=parts.config.inference.in_flight,
        adapter=adapter,
        hosts=hosts,
        lend=None if lender is None else lender.lend,
        memory=_share(parts, folder) if trains and part.options.get("colocate") is True else None,
    )
    backend: Backend = parts.plugins.build("backends", part, context=context)
    _check_is_engine(parts.config, backend)
    return backend if merged is None else StartedOnMerged(backend, merged)


def _share(parts: BackendParts, folder: Path) -> int | None:
    """The bytes of the learner's device that an engine may take which sleeps while the learner steps."""
    from agentrl.training.plan import plan_memory

    return plan_memory(parts.config, folder).engine_share


def sleeper(backend: Backend) -> Sleeper | None:
    """Returns ``backend`` where it is to sleep while the learner steps."""
    return backend if isinstance(backend, Sleeper) and backend.sleeps else None


def build_chat_backend(parts: ChatParts, warn: Callable[[str], None], meter: Meter = UNMETERED) -> ChatBackend:
    """The chat backend that the config names, not started; ``warn`` shows the user what it has to say.

    ``meter`` is told of what its requests have used, as those of an evaluation.
    """
    config = parts.config
    context = ChatContext(
        model=config.model.name,
        timeout=config.inference.timeout,
        max_concurrency=config.rollout.concurrency,
        warn=warn,
        spend=lambda usage: meter.spend("evaluation", "policy", config.model.name, usage),
        options=config.inference.backend.options,
    )
    backend: ChatBackend = parts.plugins.build("backends", config.inference.backend, context=context)
    return backend


async def stop(
    backend: Backend | ChatBackend, unstopped: Callable[[Exception], None], warn: Callable[[str], None]
) -> None:
    """Stop ``backend``, for which it has a minute; one that does not stop in time is abandoned.

    ``unstopped`` is called with the error of a backend that fails to stop or is abandoned, ``warn`` after 5 seconds.
    """
    stopping_code = Holder("the inference backend, which is to stop,", StopBlocked, _FIX_STOP)
    others = {_stopped.__code__: stopping_code}
    async with LoopWatchdog(None, warn, deadline=_STOP_S, others=others):
        stopping = asyncio.ensure_future(_stopped(backend))
        done, _ = await asyncio.wait({stopping}, timeout=min(_WARN_S, _STOP_S))
        if not done and _STOP_S > _WARN_S:
            warn(f"the inference backend has not stopped after {_WARN_S:g} s; after {_STOP_S:g} s it is left as it is")
            done, _ = await asyncio.wait({stopping}, timeout=_STOP_S - _WARN_S)
    if not done:
        stopping.cancel()
        unstopped(BackendError(f"the inference backend did not stop within {_STOP_S:g} s", fix="mend its stop"))
    elif isinstance(error := stopping.exception(), Exception):
        unstopped(error)


async def _stopped(backend: Backend | ChatBackend) -> None:
    await backend.stop()


def warned(warn: Callable[[str], None]) -> Callable[[Exception], None]:
    """An ``unstopped`` for ``stop`` that warns: everything else is done by then."""
    return lambda error: warn(f"the inference backend failed to stop: {type(error).__name__}: {error}")
