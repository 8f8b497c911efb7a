"""Sending weights from the process that has them: what ``Weights.send`` calls there.

No tensor passes through the process of the run. Each function asks the servers to take what comes, sends the tensors
one by one, and returns ``Sent`` as a dict of plain values. It goes through all tensors in any case, since those of a
learner in several processes are put together by all of them at once.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import httpx

from agentrl_vllm.stream import Buffer, Connection, Listener, SharedBuffer, Tensors

if TYPE_CHECKING:
    import torch

    from agentrl.inference.contract import Weights

__all__ = ["Carrier", "Sent", "Target", "cast_tensors", "facing", "place_of", "stream_weights"]

Carrier = Literal["inline", "shared", "cuda"]
"""See ``stream``."""

_SHARED = 8 * 2**20
"""Bytes of the buffer in shared memory through which pieces of tensors go: few enough for a processor's cache."""
_ON_GPU = 64 * 2**20
"""Bytes of the buffer on a GPU: each piece costs a message either way."""
_ARRIVE_S = 30.0
"""Seconds that a server's workers have to connect."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that weights are sent to."""

    url: str
    workers: int
    """How many processes hold its model."""
    key: str | None = None
    life: int = 1
    """Tells a server from an earlier one at the same URL."""

    @property
    def headers(self) -> dict[str, str]:
        """Those of every request to it."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}


@dataclass(slots=True)
class Sent:
    """What came of sending weights to servers."""

    bytes: int = 0
    """Those of the tensors, in the type that they were sent in."""
    seconds: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)
    """By URL, why a server does not have them."""
    refusals: dict[str, str] = field(default_factory=dict)
    """By URL, why a server has not begun to take them, and has its old ones still."""


def facing(url: str) -> str:
    """Returns the address of this machine by which the server at ``url`` reaches it."""
    parts = urlsplit(url)
    family, _, _, _, address = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # Nothing is sent: it only finds the way.
        probe.connect(address)
        own: str = probe.getsockname()[0]
        return own


def place_of(weights: Weights) -> dict[str, str]:
    """Returns where ``weights`` are: the fields of ``transfer.Place``."""
    (device,) = {tensor.device for _, tensor in weights.tensors()}
    if device.type != "cuda":
        return {"device": device.type}
    from agentrl_vllm.cuda import gpu_of

    return {"device": "cuda", "gpu": gpu_of(device)}


def cast_tensors(weights: Weights, dtype: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of ``weights`` in the type that the servers keep them in, as ``Weights.digests`` has them."""
    import torch

    for name, tensor in weights.tensors():
        yield name, tensor.detach().to(getattr(torch, dtype))


def stream_weights(
    weights: Weights, *, targets: Sequence[Mapping[str, Any]], carrier: Carrier, dtype: str, seconds: float
) -> dict[str, Any]:
    """Have ``agentrl_receive`` called in all workers of ``targets``, which are ``Target`` as dicts, and stream to them.

    ``dtype`` is the type of the servers' models. A server has ``seconds`` to say that it has taken up all.
    """
    servers = [Target(**each) for each in targets]
    began, sent = time.monotonic(), Sent()
    token = secrets.token_hex(32)
    address = facing(servers[0].url)
    buffer: Buffer | None = None
    gpu = ""
    listener = Listener(address, token)
    try:
        if carrier == "shared":
            buffer = SharedBuffer(_SHARED)
        elif carrier == "cuda":
            from agentrl_vllm.cuda import CudaBuffer, gpu_of

            buffer = CudaBuffer.made(_ON_GPU)
            gpu = gpu_of(buffer.bytes.device)
    except BaseException:
        listener.close()
        raise
    calls = [_Call(each, [address, str(listener.port), token, each.url], seconds) for each in servers]
    workers = _arrived(listener, calls)
    tensors = Tensors(workers, carrier, buffer, gpu)
    try:
        for name, tensor in cast_tensors(weights, dtype):
            tensors.send(name, tensor)
        tensors.end()
        for call in calls:
            call.join()
    finally:
        tensors.close()
        listener.close()
        if buffer is not None:
            buffer.close()
    sent.bytes, sent.seconds = tensors.sent, time.monotonic() - began
    for call in calls:
        fault = call.fault or tensors.faults.get(call.target.url)
        if fault is not None:
            (sent.refusals if call.has_refused else sent.faults)[call.target.url] = fault
    return asdict(sent)


class _Call(threading.Thread):
    """The question to a server to take weights, which it answers when it has them."""

    def __init__(self, target: Target, arguments: Sequence[str], seconds: float) -> None:
        super().__init__(name=f"agentrl-sending-{target.url}", daemon=True)
        self.target = target
        self.fault: str | None = None
        self.has_refused = False
        """Whether it did not begin to change its weights."""
        self._arguments = arguments
        self._seconds = seconds
        self.start()

    def run(self) -> None:
        body = {"method": "agentrl_receive", "args": list(self._arguments)}
        try:
            with httpx.Client(timeout=self._seconds, trust_env=False, headers=self.target.headers) as client:
                answer = client.post(f"{self.target.url}/collective_rpc", json=body)
            if answer.status_code != httpx.codes.OK:
                self.fault = f"status {answer.status_code}: {answer.text[:300]}"
                return
            results = answer.json()["results"]
        except (httpx.HTTPError, json.JSONDecodeError, KeyError) as error:
            self.fault = f"{type(error).__name__}: {error}"
            return
        faults = [each["fault"] for each in results if each.get("fault") is not None]
        if faults:
            self.fault = str(faults[0])
            self.has_refused = all(each.get("untouched") for each in results)


def _arrived(listener: Listener, calls: Sequence[_Call]) -> list[Connection]:
    """The workers of all servers that come in time, but for those of a server that cannot take weights."""
    arrived: list[Connection] = []
    deadline = time.monotonic() + _ARRIVE_S
    missing = {call.target.url: call.target.workers for call in calls}
    while any(missing.values()) and time.monotonic() < deadline:
        worker = listener.accept()
        if worker is not None and missing.get(worker.peer):
            arrived.append(worker)
            missing[worker.peer] -= 1
        for call in calls:
            if not call.is_alive():  # Its answer came before its workers.
                missing[call.target.url] = 0
    for worker in arrived:
        if missing[worker.peer]:
            worker.close()
    return [worker for worker in arrived if not missing[worker.peer]]
