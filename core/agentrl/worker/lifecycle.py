"""A worker's life: connect, greet, load the agent, run its episodes, leave."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from agentrl.agents.binding import BoundAgent, bind_agent
from agentrl.environ import DISABLE_PLUGINS
from agentrl.errors import PluginError, one_line
from agentrl.plugins import Plugins
from agentrl.plugins.entries import core_version
from agentrl.redaction import redact_every_log
from agentrl.worker.episodes import Inbox, run_async_agent, run_sync_agent, write_stderr
from agentrl.worker.loop import end_if_forked
from agentrl.worker.protocol import LONGEST, PROTOCOL, Message, decode, encode, error_to_json
from agentrl.worker.variables import endpoint_variables, set_process_variables

__all__ = ["Channel", "serve"]

_GRACE_S = 2.0
"""How long a worker that was told to stop may take to clean up."""

_FLUSH_S = 1.0
"""How long what it has printed may take to be written."""


class Channel:
    """The worker's end of the socket pair: whole messages, from any thread, over the descriptor ``fd``.

    Child processes do not share it: a program that the agent starts does not inherit the descriptor, and a copy of
    this process made by ``os.fork`` closes it at once and sends nothing. Raises ``OSError`` where ``fd`` is no
    connected socket.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.getpeername()  # Any descriptor makes a socket object; only a connected socket has a peer.
        self._socket.set_inheritable(False)
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._close_in_child)

    def messages(self) -> Iterator[Message]:
        """The rollout's messages, until it closes the connection. Raises ``ValueError`` for anything else."""
        # It is "reset" where the rollout has left something unread.
        with self._socket.makefile("rb") as lines, contextlib.suppress(ConnectionError):
            while line := self._line(lines.readline(LONGEST + 1)):
                yield decode(line)

    def _line(self, line: bytes) -> bytes:
        if len(line) > LONGEST:
            raise ValueError(f"a message of more than {LONGEST} bytes")
        return line if line.endswith(b"\n") else b""

    def send(self, line: bytes) -> None:
        """Send an encoded message; it is dropped where the rollout has closed the connection."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(line)

    def _close_in_child(self) -> None:
        # Not with close(): the file object that reads, in a thread that the child does not have, defers that.
        if self._socket.fileno() >= 0:
            os.close(self._socket.detach())
        self._lock = threading.Lock()


def serve(channel: Channel) -> int:
    """Serve the rollout until it sends ``stop``, and return the process's exit code."""
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
    """Answer ``hello`` and return whether the rollout speaks this version of the protocol."""
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
        run_async_agent(agent, inbox, send)
    else:
        run_sync_agent(agent, inbox, send)


def _load(load: Message, send: Callable[[bytes], None]) -> BoundAgent | None:
    worker = os.getpid()
    try:
        agent = _load_agent(load)
    except BaseException as error:  # The agent's module may raise anything, and ask the interpreter to exit.
        end_if_forked(worker, error)
        send(encode({"type": "refused", "error": error_to_json(error)}))
        return None
    end_if_forked(worker, None)
    send(encode({"type": "loaded", "is_async": agent.is_async, "returns_answer": agent.returns_answer}))
    return agent


def _load_agent(load: Message) -> BoundAgent:
    """The agent that a ``load`` message names, imported with the process's endpoint in the environment.

    Raises what ``Plugins.get`` and ``bind_agent`` raise.
    """
    endpoint = load["endpoint"]
    set_process_variables(endpoint_variables(endpoint["base_url"], endpoint["api_key"]))
    # As the environment would have it: what is disabled need not be installed beside this agent.
    plugins = Plugins(environ={DISABLE_PLUGINS: ",".join(load["disabled"])})
    agent = plugins.adapt_agent(plugins.get("agents", load["agent"]))
    return bind_agent(agent, load["kwargs"], name=load["agent"], allow_sync=True, outcomes=load["outcomes"])


def _listen(channel: Channel, inbox: Inbox) -> None:
    """Read messages until ``stop`` or the end of the connection, and make sure that the process ends then."""
    try:
        for message in channel.messages():
            inbox.put(message)
            if message["type"] == "stop":
                _leave(0, after_s=_GRACE_S)
    except ValueError as error:
        _leave(_broken(error))
    os._exit(1)  # The rollout is gone, and the supervisor ends what is left.


def _broken(error: Exception) -> int:
    write_stderr(f"agentrl.worker: the rollout broke the protocol: {one_line(error)}\n")
    return 1


def _leave(code: int, *, after_s: float = 0.0) -> NoReturn:
    """End the process after ``after_s`` seconds, unless the main thread has ended it by then."""

    def flush() -> None:
        time.sleep(after_s)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # The agent may have closed it.
                stream.flush()
        os._exit(code)

    # A thread, because a full pipe that nobody empties would hold the flushing up for ever; and made now, because
    # an interpreter that is on its way out starts none.
    threading.Thread(target=flush, daemon=True).start()
    time.sleep(after_s + _FLUSH_S)
    os._exit(code)
