"""The episodes of a synchronous agent: each a thread of its own, which cannot keep the process from ending."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable

from agentrl.agents.binding import BoundAgent
from agentrl.worker.answers import done, failed
from agentrl.worker.connections import Connections
from agentrl.worker.forks import end_if_forked
from agentrl.worker.inbox import Inbox
from agentrl.worker.protocol import Message
from agentrl.worker.variables import endpoint_variables, enter_episode

__all__ = ["run_threads"]


def run_threads(agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None]) -> None:
    """Run episodes until the rollout says ``stop``. Nothing can cancel a thread: ``cancel`` is not heard."""
    connections = Connections(agent)
    worker = os.getpid()

    def run(message: Message) -> None:
        connection = message["connection"]
        enter_episode(endpoint_variables(connection["base_url"], connection["api_key"]))
        send(_answer(agent, message, connections, worker))

    while (message := inbox.get())["type"] != "stop":
        match message["type"]:
            case "run":
                context = contextvars.copy_context()
                threading.Thread(target=context.run, args=(run, message), name="episode", daemon=True).start()
            case "cancel":
                pass
            case other:
                raise ValueError(f"a worker that has loaded its agent takes no {other!r}")


def _answer(agent: BoundAgent, run: Message, connections: Connections, worker: int) -> bytes:
    try:
        returned = agent.call(run["data"], connections.of(run["connection"]))
    except BaseException as error:  # An agent may do nothing that ends more than its episode.
        end_if_forked(worker, error)
        return failed(run["id"], error)
    end_if_forked(worker, None)
    return done(run["id"], returned)
