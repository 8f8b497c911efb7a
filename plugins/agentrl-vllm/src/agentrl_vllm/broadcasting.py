"""Broadcasting weights to the GPUs of servers, by vLLM's own weight transfer (``--weight-transfer-config`` nccl).

This process is rank 0 of a NCCL group in which every worker of every server is one rank. The servers are told NCCL's id
of the group, as vLLM takes it from learners that do not have vLLM, and are then told of the tensors by name, type and
shape as they are broadcast. The group is kept from one update to the next, since making it takes seconds, and is made
anew where servers have come or gone.
"""

from __future__ import annotations

import base64
import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import httpx

from agentrl_vllm.sending import Sent, Target, cast_tensors

if TYPE_CHECKING:
    import torch

    from agentrl.inference.contract import Weights

__all__ = ["Group", "Nccl", "NcclError", "broadcast_weights"]

_CHUNK = 512 * 2**20
"""Bytes of tensors that servers are told of at once."""
_JOIN_S = 120.0
"""Seconds that all servers have for joining the group."""
_ID = 128
_TYPES = {"float16": 6, "float32": 7, "float64": 8, "bfloat16": 9}
_SUM = 0


class NcclError(Exception):
    """A call to NCCL failed, or did not return in time."""


class _Id(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_byte * _ID),)


class Nccl:
    """One rank of a group, by the calls of ``libnccl``, which torch has loaded."""

    def __init__(self) -> None:
        try:
            self._library: Any = ctypes.CDLL("libnccl.so.2")
        except OSError as error:
            raise NcclError(f"NCCL cannot be loaded: {error}") from error
        self._library.ncclGetErrorString.restype = ctypes.c_char_p
        self._group = ctypes.c_void_p()

    def make_id(self) -> bytes:
        """Returns the id of a new group."""
        made = _Id()
        self._call("ncclGetUniqueId", ctypes.byref(made))
        return bytes(made)

    def join(self, unique_id: bytes, size: int) -> None:
        """Be rank 0 of the group; returns when all ranks are there, and have added up a number."""
        import torch

        known = _Id.from_buffer_copy(unique_id)
        self._call("ncclCommInitRank", ctypes.byref(self._group), ctypes.c_int(size), known, ctypes.c_int(0))
        number = torch.zeros(1, device="cuda")
        at, stream = ctypes.c_void_p(number.data_ptr()), _stream()
        kind = ctypes.c_int(_TYPES["float32"])
        self._call("ncclAllReduce", at, at, ctypes.c_size_t(1), kind, ctypes.c_int(_SUM), self._group, stream)
        torch.cuda.synchronize()

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Have every rank receive ``tensor``, as work of the current stream."""
        at, kind = ctypes.c_void_p(tensor.data_ptr()), _TYPES[str(tensor.dtype).removeprefix("torch.")]
        count = ctypes.c_size_t(tensor.numel())
        self._call("ncclBroadcast", at, at, count, ctypes.c_int(kind), ctypes.c_int(0), self._group, _stream())

    def wait(self, seconds: float, is_given_up: Callable[[], bool]) -> None:
        """Wait until what was broadcast has arrived. Raises ``NcclError`` past ``seconds``, or once it is given up."""
        import torch

        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        deadline = time.monotonic() + seconds
        while not event.query():
            if is_given_up():
                raise NcclError("a server did not take them")
            if time.monotonic() > deadline:
                raise NcclError(f"the servers did not take the weights within {seconds:g} s")
            time.sleep(0.0005)

    def abort(self) -> None:
        """Leave the group, whatever is under way in it. Safe to call twice."""
        group, self._group = self._group, ctypes.c_void_p()
        if group:
            self._library.ncclCommAbort(group)

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise NcclError(f"{name} failed: {self._library.ncclGetErrorString(status).decode()}")


def _stream() -> ctypes.c_void_p:
    import torch

    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


class Group:
    """A group with the workers of ``targets``, of which this process is rank 0."""

    def __init__(self, targets: Sequence[Target], make: Callable[[], Nccl] = Nccl) -> None:
        """Have all of them join. Raises ``NcclError`` where they do not in time, and leaves nothing."""
        self.targets = tuple(targets)
        self.nccl = make()
        size = 1 + sum(each.workers for each in targets)
        unique_id = self.nccl.make_id()
        told = {"nccl_unique_id_b64": base64.b64encode(unique_id).decode(), "world_size": size, "packed": False}
        calls, offset = [], 1
        for each in targets:
            info = {**told, "rank_offset": offset}
            calls.append(_Post(each, "/init_weight_transfer_engine", {"init_info": info}, _JOIN_S))
            offset += each.workers
        joining = threading.Thread(target=self._join, args=(unique_id, size), name="agentrl-nccl", daemon=True)
        self._fault: Exception | None = None
        joining.start()
        deadline = time.monotonic() + _JOIN_S
        while joining.is_alive() and not _has_failed(calls) and time.monotonic() < deadline:
            joining.join(0.1)
        faults = [f"{each.target.url}: {each.fault}" for each in calls if not each.is_alive() and each.fault]
        if joining.is_alive() or self._fault is not None or faults:
            self.nccl.abort()
            raise NcclError("; ".join(faults) or str(self._fault or f"no group was made within {_JOIN_S:g} s"))
        for call in calls:
            call.join()
            if call.fault is not None:
                self.nccl.abort()
                raise NcclError(f"{call.target.url}: {call.fault}")

    def _join(self, unique_id: bytes, size: int) -> None:
        try:
            self.nccl.join(unique_id, size)
        except Exception as error:  # Told by whoever waits.
            self._fault = error

    def ask(self, path: str, body: Mapping[str, Any], seconds: float) -> list[_Post]:
        """Begin to ask all servers."""
        return [_Post(each, path, body, seconds) for each in self.targets]


_GROUPS: dict[str, Group] = {}
"""The group that is kept. ``Weights.send`` names a function, which has no object of its own where it is called."""


def broadcast_weights(
    weights: Weights, *, targets: Sequence[Mapping[str, Any]], dtype: str, seconds: float
) -> dict[str, Any]:
    """Broadcast to the paused servers ``targets``, which are ``Target`` as dicts; see ``sending``.

    ``dtype`` is the type of the servers' models, and ``seconds`` what they have for taking all.
    """
    servers = tuple(Target(**each) for each in targets)
    began, deadline, sent = time.monotonic(), time.monotonic() + seconds, Sent()
    tensors = cast_tensors(weights, dtype)
    try:
        group = _grouped(servers)
    except (NcclError, OSError, RuntimeError) as error:
        for _ in tensors:  # All processes of the learner go through them.
            pass
        sent.refusals = {each.url: f"no group with the learner: {error}" for each in servers}
        return asdict(sent)
    faults: dict[str, str] = {}
    try:
        _finished(group.ask("/start_weight_update", {}, seconds), faults)
        chunk: list[tuple[str, torch.Tensor]] = []
        size = 0
        for name, tensor in tensors:
            if faults:
                continue
            chunk.append((name, tensor.contiguous()))
            sent.bytes, size = sent.bytes + tensor.nbytes, size + tensor.nbytes
            if size >= _CHUNK:
                _broadcast(group, chunk, deadline, faults)
                chunk, size = [], 0
        if chunk and not faults:
            _broadcast(group, chunk, deadline, faults)
        if not faults:
            _finished(group.ask("/finish_weight_update", {}, seconds), faults)
    except NcclError as error:
        faults |= {each.url: str(error) for each in servers if each.url not in faults}
        for _ in tensors:
            pass
    if faults:  # A rank that is gone hangs every other in the group.
        _GROUPS.clear()
        group.nccl.abort()
        faults = {each.url: faults.get(each.url, "another server of its group failed") for each in servers}
    sent.faults, sent.seconds = faults, time.monotonic() - began
    return asdict(sent)


def _grouped(servers: tuple[Target, ...]) -> Group:
    kept = _GROUPS.get("kept")
    if kept is None or kept.targets != servers:
        _GROUPS.clear()
        if kept is not None:
            kept.nccl.abort()
        kept = _GROUPS["kept"] = Group(servers)
    return kept


def _broadcast(
    group: Group, chunk: Sequence[tuple[str, torch.Tensor]], deadline: float, faults: dict[str, str]
) -> None:
    info = {
        "names": [name for name, _ in chunk],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in chunk],
        "shapes": [list(tensor.shape) for _, tensor in chunk],
    }
    left = max(1.0, deadline - time.monotonic())
    calls = group.ask("/update_weights", {"update_info": info}, left)
    for _, tensor in chunk:
        group.nccl.broadcast(tensor)
    try:
        group.nccl.wait(left, lambda: _has_failed(calls))
    except NcclError as error:
        faults |= {call.target.url: call.fault or str(error) for call in calls if call.fault or call.is_alive()}
        raise
    _finished(calls, faults)


def _has_failed(calls: Sequence[_Post]) -> bool:
    return any(not call.is_alive() and call.fault is not None for call in calls)


def _finished(calls: Sequence[_Post], faults: dict[str, str]) -> None:
    for call in calls:
        call.join()
        if call.fault is not None:
            faults[call.target.url] = call.fault


class _Post(threading.Thread):
    """A question to a server."""

    def __init__(self, target: Target, path: str, body: Mapping[str, Any], seconds: float) -> None:
        super().__init__(name=f"agentrl-sending-{target.url}", daemon=True)
        self.target = target
        self.fault: str | None = None
        self._path, self._body, self._seconds = path, dict(body), seconds
        self.start()

    def run(self) -> None:
        try:
            with httpx.Client(timeout=self._seconds, trust_env=False, headers=self.target.headers) as client:
                answer = client.post(f"{self.target.url}{self._path}", json=self._body)
        except httpx.HTTPError as error:
            self.fault = f"{self._path}: {type(error).__name__}: {error}"
            return
        if answer.status_code != httpx.codes.OK:
            self.fault = f"{self._path}: status {answer.status_code}: {answer.text[:300]}"
