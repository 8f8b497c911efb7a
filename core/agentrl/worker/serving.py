"""A worker's life: greet, load the agent, run its episodes, leave."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from agentrl.agents.binding import BoundAgent
from agentrl.errors import PluginError, one_line
from agentrl.plugins.entries import core_version
from agentrl.redaction import redact_every_log
from agentrl.worker.answers import say
from agentrl.worker.channel import Channel
from agentrl.worker.coroutines import run_coroutines
from agentrl.worker.forks import end_if_forked
from agentrl.worker.functions import run_functions
from agentrl.worker.inbox import Inbox
from agentrl.worker.loading import load_agent
from agentrl.worker.protocol import PROTOCOL, Message, encode, error_to_json

__all__ = ["serve"]

_GRACE_S = 2.0
"""How long a worker that was told to stop may take to clean up."""

_FLUSH_S = 1.0
"""How long what it has printed may take to be written."""


def serve(channel: Channel) -> int:
    """Speak with the rollout until it says ``stop``, and return the process's exit code."""
    inbox = Inbox()
    redact_every_log()
    threading.Thread(target=_listen, args=(channel, inbox), name="agentrl-control", daemon=True).start()
    try:
        if _greet(inbox.get(), channel.send):
            _work(inbox, channel.send)
    except (LookupError, TypeError, ValueError) as error:
        return _broken(error)
    return 0


def _greet(hello: Message, send: Callable[[bytes], None]) -> bool:
    """Answer ``hello``; whether it is of this protocol."""
    if hello["type"] != "hello":
        raise ValueError(f"{hello['type']!r} instead of 'hello'")
    send(encode({"type": "hello", "protocol": PROTOCOL, "core": _core(), "python": platform.python_version()}))
    return hello.get("protocol") == PROTOCOL


def _core() -> str | None:
    try:
        return core_version()
    except PluginError:
        return None


def _work(inbox: Inbox, send: Callable[[bytes], None]) -> None:
    message = inbox.get()
    if message["type"] == "stop":
        return
    if message["type"] != "load":
        raise ValueError(f"{message['type']!r} to a worker without an agent")
    agent = _load(message, send)
    if agent is None:
        while inbox.get()["type"] != "stop":
            pass
    elif agent.is_async:
        run_coroutines(agent, inbox, send)
    else:
        run_functions(agent, inbox, send)


def _load(load: Message, send: Callable[[bytes], None]) -> BoundAgent | None:
    worker = os.getpid()
    try:
        agent = load_agent(load)
    except BaseException as error:  # The agent's module may raise anything, and ask the interpreter to exit.
        end_if_forked(worker, error)
        send(encode({"type": "refused", "error": error_to_json(error)}))
        return None
    end_if_forked(worker, None)
    send(encode({"type": "loaded", "is_async": agent.is_async, "returns_answer": agent.returns_answer}))
    return agent


def _listen(channel: Channel, inbox: Inbox) -> None:
    """Read until there is no more to be said, and see to it that the process ends then, whatever holds it up."""
    try:
        for message in channel.messages():
            inbox.put(message)
            if message["type"] == "stop":
                _leave(0, after_s=_GRACE_S)
    except ValueError as error:
        _leave(_broken(error))
    os._exit(1)  # The rollout is gone, and the supervisor ends what is left.


def _broken(error: Exception) -> int:
    say(f"agentrl.worker: the rollout broke the protocol: {one_line(error)}\n")
    return 1


def _leave(code: int, *, after_s: float = 0.0) -> NoReturn:
    """End the process, if the main thread has not by then."""

    def flush() -> None:
        time.sleep(after_s)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # The agent may have closed it.
                stream.flush()
        os._exit(code)

    # A thread, because a full pipe that nobody empties would hold the flushing up for ever; and made now, because
    # an interpreter that is on its way out starts none.
    threading.Thread(target=flush, daemon=True).start()
    time.sleep(after_s + _FLUSH_S)
    os._exit(code)
