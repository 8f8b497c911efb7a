"""The episodes of a synchronous agent: in the main thread where it is free, as in a script, else in their own."""

from __future__ import annotations

import contextvars
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from agentrl.agents.binding import BoundAgent
from agentrl.worker.answers import done, failed
from agentrl.worker.connections import Connections
from agentrl.worker.forks import end_if_forked
from agentrl.worker.inbox import Inbox
from agentrl.worker.protocol import Message
from agentrl.worker.variables import endpoint_variables, enter_episode

__all__ = ["run_functions"]

Work = Callable[[], bytes]
"""An episode to run; returns the answer."""


def run_functions(agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None]) -> None:
    """Run episodes until the rollout says ``stop``. ``cancel`` is not heard: nothing can cancel a function.

    Libraries that set signal handlers, or ask for "the" event loop, work in the main thread alone; and no thread
    can keep the process from ending. Raises ``ValueError`` for a message that makes no sense.
    """
    functions = _Functions(agent, send)
    threading.Thread(target=functions.take, args=(inbox,), name="agentrl-episodes", daemon=True).start()
    functions.work()


class _Functions:
    def __init__(self, agent: BoundAgent, send: Callable[[bytes], None]) -> None:
        self._agent = agent
        self._send = send
        self._connections = Connections(agent)
        self._worker = os.getpid()
        self._works: queue.SimpleQueue[Work | ValueError | None] = queue.SimpleQueue()
        self._is_free = True

    def work(self) -> None:
        """Run what is given to the main thread, until that is to end."""
        while callable(work := self._works.get()):
            answer = work()
            self._is_free = True  # Before the rollout knows it.
            self._send(answer)
        if work is not None:
            raise work

    def take(self, inbox: Inbox) -> None:
        """Obey the rollout until it says ``stop``."""
        try:
            while (message := inbox.get())["type"] != "stop":
                self._obey(message)
            self._works.put(None)
        except (LookupError, TypeError, ValueError) as error:
            self._works.put(ValueError(f"{type(error).__name__}: {error}"))

    def _obey(self, message: Message) -> None:
        match message["type"]:
            case "run":
                self._start(message["id"], message["data"], message["connection"])
            case "cancel":
                pass
            case other:
                raise ValueError(f"{other!r} to a worker that has its agent")

    def _start(self, episode: object, data: Any, connection: Message) -> None:
        context = contextvars.copy_context()
        context.run(enter_episode, endpoint_variables(connection["base_url"], connection["api_key"]))

        def work() -> bytes:
            return context.run(self._answer, episode, data, connection)

        if self._is_free:
            self._is_free = False
            self._works.put(work)
        else:
            threading.Thread(target=lambda: self._send(work()), name=f"episode-{episode}", daemon=True).start()

    def _answer(self, episode: object, data: Any, connection: Message) -> bytes:
        try:
            returned = self._agent.call(data, self._connections.of(connection))
        except BaseException as error:  # An agent may do nothing that ends more than its episode.
            end_if_forked(self._worker, error)
            return failed(episode, error)
        end_if_forked(self._worker)
        return done(episode, returned)
