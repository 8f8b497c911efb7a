"""The episodes of a synchronous agent: each a thread of its own, which cannot keep the process from ending."""

from __future__ import annotations

import contextvars
import os
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

__all__ = ["run_threads"]


def run_threads(agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None]) -> None:
    """Run episodes until the rollout says ``stop``. ``cancel`` is not heard: nothing can cancel a thread.

    Raises ``ValueError`` for a message that makes no sense.
    """
    threads = _Threads(agent, send)
    while (message := inbox.get())["type"] != "stop":
        match message["type"]:
            case "run":
                threads.start(message["id"], message["data"], message["connection"])
            case "cancel":
                pass
            case other:
                raise ValueError(f"{other!r} to a worker that has its agent")


class _Threads:
    def __init__(self, agent: BoundAgent, send: Callable[[bytes], None]) -> None:
        self._agent = agent
        self._send = send
        self._connections = Connections(agent)
        self._worker = os.getpid()

    def start(self, episode: object, data: Any, connection: Message) -> None:
        context = contextvars.copy_context()
        context.run(enter_episode, endpoint_variables(connection["base_url"], connection["api_key"]))
        run = (self._run, episode, data, connection)
        threading.Thread(target=context.run, args=run, name=f"episode-{episode}", daemon=True).start()

    def _run(self, episode: object, data: Any, connection: Message) -> None:
        self._send(self._answer(episode, data, connection))

    def _answer(self, episode: object, data: Any, connection: Message) -> bytes:
        try:
            returned = self._agent.call(data, self._connections.of(connection))
        except BaseException as error:  # An agent may do nothing that ends more than its episode.
            end_if_forked(self._worker, error)
            return failed(episode, error)
        end_if_forked(self._worker)
        return done(episode, returned)
