"""Tensors reach the workers bit for bit by every carrier; who is not expected, or breaks off, harms nobody else."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl_vllm import stream as streams
from agentrl_vllm.stream import Broken, Connection, Listener, SharedBuffer, Stream, Tensors

TOKEN = "the token"
TENSORS = {
    "embedding": torch.randn(300, 16),
    "half": torch.randn(7, 5).to(torch.bfloat16),
    "turned": torch.randn(6, 4).t(),
    "number": torch.tensor(3.5, dtype=torch.float64),
    "zeros": torch.tensor([0.0, -0.0]),
    "none": torch.empty(0, 4),
}


class Worker(threading.Thread):
    """Receives a stream in a thread of its own, as a server's worker does in a process."""

    def __init__(self, port: int, server: str = "http://one", *, token: str = TOKEN, **options: Any) -> None:
        super().__init__(daemon=True)
        self.port, self.server, self.token = port, server, token
        self.shapes = options.get("shapes")
        self.leaves_after = options.get("leaves_after")
        self.gpu = options.get("gpu", "")
        self.got: dict[str, torch.Tensor] = {}
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            opened = Stream.opened("127.0.0.1", self.port, self.token, self.server, "cpu", self.gpu)
            for name, tensor in opened.tensors(self.shapes):
                self.got[name] = tensor
                if len(self.got) == self.leaves_after:
                    opened._connection.close()
        except Exception as error:
            self.error = error

    def ended(self) -> Worker:
        self.join(30)
        assert not self.is_alive(), "the worker still waits for tensors"
        return self


def sent(
    make: Callable[[int], Sequence[Worker]], *, carrier: str = "inline", buffer: int = 0
) -> tuple[Sequence[Worker], Tensors]:
    """Have the workers that ``make`` makes receive ``TENSORS``."""
    listener = Listener("127.0.0.1", TOKEN)
    workers = make(listener.port)
    arrived: list[Connection] = []
    while len(arrived) < len(workers):
        if (worker := listener.accept()) is not None:
            arrived.append(worker)
    tensors = Tensors(arrived, carrier, SharedBuffer(buffer) if buffer else None)
    for name, tensor in TENSORS.items():
        tensors.send(name, tensor)
    tensors.end()
    tensors.close()
    listener.close()
    return [worker.ended() for worker in workers], tensors


def whole(worker: Worker) -> bool:
    return worker.got.keys() == TENSORS.keys() and all(
        worker.got[name].dtype == tensor.dtype
        and torch.equal(worker.got[name], tensor)
        and torch.equal(worker.got[name].signbit(), tensor.signbit())
        for name, tensor in TENSORS.items()
    )


@pytest.mark.parametrize(
    ("carrier", "buffer"), [("inline", 0), ("shared", 1 << 16), ("shared", 1000)], ids=["inline", "shared", "in pieces"]
)
def test_every_tensor_arrives_bit_for_bit_at_every_worker(carrier: str, buffer: int) -> None:
    before = {each.name for each in Path("/dev/shm").glob("agentrl-stream-*")} if os.path.isdir("/dev/shm") else set()
    workers, tensors = sent(lambda port: [Worker(port), Worker(port, "http://two")], carrier=carrier, buffer=buffer)
    assert [worker.error for worker in workers] == [None, None]
    assert all(map(whole, workers))
    assert tensors.sent == sum(tensor.nbytes for tensor in TENSORS.values())
    assert not tensors.faults
    if os.path.isdir("/dev/shm"):
        assert {each.name for each in Path("/dev/shm").glob("agentrl-stream-*")} <= before


@pytest.mark.parametrize("buffer", [0, 1000])
def test_a_worker_that_breaks_off_is_left_out_and_the_others_have_all(buffer: int) -> None:
    workers, tensors = sent(
        lambda port: [Worker(port, leaves_after=2), Worker(port, "http://two")],
        carrier="shared" if buffer else "inline",
        buffer=buffer,
    )
    # What few bytes a connection takes up before it is known to be closed: the server's own answer tells then.
    assert list(tensors.faults) == ["http://one"] or not buffer
    assert not whole(workers[0])
    assert whole(workers[1])


def test_a_tensor_of_another_shape_ends_the_stream_of_that_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, _ = sent(lambda port: [Worker(port, shapes={"half": (5, 7)}), Worker(port, "http://two")])
    assert isinstance(workers[0].error, Broken)
    assert "half comes as [7, 5] and should be [5, 7]" in str(workers[0].error)
    assert whole(workers[1])


def test_who_does_not_show_the_token_gets_no_tensor() -> None:
    listener = Listener("127.0.0.1", TOKEN)
    stranger = Worker(listener.port, token="a guess")
    with socket.create_connection(("127.0.0.1", listener.port)) as noise:
        noise.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert listener.accept() is None
        assert listener.accept() is None
    listener.close()
    assert not stranger.ended().got
    assert stranger.error is not None


def test_a_stream_that_ends_early_is_no_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener("127.0.0.1", TOKEN)
    worker = Worker(listener.port)
    while (arrived := listener.accept()) is None:
        pass
    tensors = Tensors([arrived], "inline")
    tensors.send("embedding", TENSORS["embedding"])
    tensors.close()
    listener.close()
    assert isinstance(worker.ended().error, Broken)


def test_weights_on_another_gpu_are_refused_before_any_tensor() -> None:
    listener = Listener("127.0.0.1", TOKEN)
    worker = Worker(listener.port, gpu="GPU-theirs")
    while (arrived := listener.accept()) is None:
        pass
    tensors = Tensors([arrived], "cuda", gpu="GPU-ours")
    assert isinstance(worker.ended().error, Broken)
    assert "the weights are on GPU GPU-ours, and the server is on GPU-theirs" in str(worker.error)
    assert list(tensors.faults) == ["http://one"]
    listener.close()


def test_a_sender_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.Connection.__init__, "__defaults__", (0.2,))
    listener = Listener("127.0.0.1", TOKEN)
    worker = Worker(listener.port)
    assert isinstance(worker.ended().error, TimeoutError)
    listener.close()
