"""How new weights get from the learner to the servers: by a folder, or sent tensor by tensor from where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from agentrl import BackendError, ConfigError, finish_in_thread
from agentrl.inference.contract import Weights
from agentrl_vllm.control import Description
from agentrl_vllm.sending import Sent, Target

__all__ = ["Lend", "Place", "Transfer", "Way", "choose_way", "find_place"]

Way = Literal["folder", "stream", "ipc", "nccl"]
"""``folder``: a model folder that the servers see. ``stream``: through a connection, or through shared memory where
both are on one machine. ``ipc``: through a buffer on the GPU that both are on. ``nccl``: broadcast to the servers' GPUs
by vLLM's own weight transfer."""

Lend = Callable[[str], AbstractAsyncContextManager[Weights]]
"""See ``BackendContext.lend``."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the learner's weights are."""

    device: str
    """``cpu`` or ``cuda``."""
    gpu: str = ""
    """The name that the GPU has in every process."""


def choose_way(
    asked: Way | Literal["auto"], learner: Place, server: Description, *, shares: bool, sees: bool, lends: bool
) -> Way:
    """Returns how ``server`` gets weights from ``learner``.

    ``shares`` says whether both are on one GPU, ``sees`` whether the server sees folders of this machine, and ``lends``
    whether the run lends the weights again to a server that comes back, which needs them where no folder has them.
    Raises ``ConfigError`` for a way that is asked for and cannot be.
    """
    on_gpus = learner.device == "cuda" and server.device == "cuda"
    if asked in ("ipc", "nccl") and not on_gpus:
        where = f"the learner is on {learner.device}, and the server on {server.device}"
        raise ConfigError(
            f"inference.backend.transfer={asked} is between GPUs: {where}",
            fix="leave it at auto",
            key="inference.backend.transfer",
        )
    if asked == "ipc" and not shares:
        raise ConfigError(
            "inference.backend.transfer=ipc is for a learner and a server on one GPU",
            fix="set inference.backend.colocate=true, or leave transfer at auto",
            key="inference.backend.transfer",
        )
    if asked == "nccl" and shares:
        raise ConfigError(
            "inference.backend.transfer=nccl is between GPUs, and learner and server share one",
            fix="leave it at auto, which is ipc there",
            key="inference.backend.transfer",
        )
    if asked != "auto":
        return asked
    if not lends:
        return "folder"
    if on_gpus:
        return "ipc" if shares else "nccl"
    return "folder" if sees else "stream"


class Transfer:
    """Sends weights to servers that are paused."""

    def __init__(self, way: Way, key: str | None, seconds: float) -> None:
        """``key`` is the servers' API key, and ``seconds`` how long one may take to take weights up."""
        self.way = way
        self._key = key
        self._seconds = seconds

    async def send(self, weights: Weights, servers: Mapping[str, tuple[int, int]], dtype: str) -> Sent:
        """Send ``weights`` to servers, by URL, whose models are of ``dtype``.

        Of each it is given how many workers it has, and its ``life``.

        Raises ``BackendError`` where no sending can begin.
        """
        targets = [asdict(Target(url, workers, self._key, life)) for url, (workers, life) in servers.items()]
        arguments: dict[str, Any] = {"targets": targets, "dtype": dtype, "seconds": self._seconds}
        if self.way == "nccl":
            target = "agentrl_vllm.broadcasting:broadcast_weights"
        else:
            target = "agentrl_vllm.sending:stream_weights"
            arguments["carrier"] = "cuda" if self.way == "ipc" else _carrier(list(servers))
        try:
            return Sent(**await finish_in_thread(lambda: weights.send(target, **arguments)))
        except OSError as error:
            raise BackendError(f"the new weights cannot be sent: {error.strerror or error}") from error


def _carrier(urls: Sequence[str]) -> str:
    """``shared`` where all servers are on this machine."""
    hosts = {urlsplit(url).hostname for url in urls}
    return "shared" if hosts <= {"127.0.0.1", "localhost", "::1"} else "inline"


async def find_place(weights: Weights) -> Place:
    """Returns where ``weights`` are."""
    return Place(**await finish_in_thread(lambda: weights.send("agentrl_vllm.sending:place_of")))
