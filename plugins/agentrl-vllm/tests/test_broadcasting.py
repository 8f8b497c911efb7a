"""Weights are broadcast as vLLM's own weight transfer has it: who is told what, in which order, and when one fails.

NCCL itself needs GPUs: in its place stands a group that notes what it is asked for.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from agentrl_vllm import broadcasting
from agentrl_vllm.broadcasting import NcclError, broadcast_weights

UNIQUE_ID = bytes(range(128))
TENSORS = {"embedding": torch.randn(8, 4), "head": torch.randn(4)}


class Weights:
    """Those of a learner, as far as sending goes."""

    def __init__(self) -> None:
        self.passed = 0

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in TENSORS.items():
            self.passed += 1
            yield name, tensor


class FakeNccl:
    """Rank 0 of a group that exists only here."""

    log: list[Any]

    def make_id(self) -> bytes:
        return UNIQUE_ID

    def join(self, unique_id: bytes, size: int) -> None:
        self.log.append(("join", unique_id == UNIQUE_ID, size))

    def broadcast(self, tensor: torch.Tensor) -> None:
        self.log.append(("broadcast", tensor.dtype, tuple(tensor.shape)))

    def wait(self, seconds: float, is_given_up: Any) -> None:
        assert seconds > 0
        if self.log.fails:  # type: ignore[attr-defined]
            while not is_given_up():
                time.sleep(0.01)
            raise NcclError("a server did not take them")

    def abort(self) -> None:
        self.log.append("abort")


class Log(list):
    fails = False


class Servers:
    """HTTP servers that note what they are asked and answer 200, or what ``answers`` says of a path."""

    def __init__(self, count: int) -> None:
        self.asked: list[list[tuple[str, Any]]] = [[] for _ in range(count)]
        self.answers: dict[str, int] = {}
        self.urls: list[str] = []
        self._servers = [self._serve(number) for number in range(count)]

    def _serve(self, number: int) -> ThreadingHTTPServer:
        import json

        servers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                servers.asked[number].append((self.path, json.loads(body)))
                assert self.headers["Authorization"] == "Bearer key"
                self.send_response(servers.answers.get(f"{number}{self.path}", 200))
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: object) -> None:
                """Silent."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.urls.append(f"http://127.0.0.1:{server.server_port}")
        return server

    def targets(self, lives: tuple[int, ...] = (1, 1)) -> list[dict[str, Any]]:
        return [
            {"url": url, "workers": 2 - number, "key": "key", "life": life}
            for number, (url, life) in enumerate(zip(self.urls, lives, strict=True))
        ]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers(2)
    yield made
    made.close()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    log = Log()
    monkeypatch.setattr(FakeNccl, "log", log, raising=False)
    monkeypatch.setattr(broadcasting.Group.__init__, "__defaults__", (FakeNccl,))
    yield log
    broadcasting._GROUPS.clear()


def broadcast(servers: Servers, lives: tuple[int, ...] = (1, 1)) -> tuple[dict[str, Any], Weights]:
    weights = Weights()
    return broadcast_weights(weights, targets=servers.targets(lives), dtype="bfloat16", seconds=20.0), weights


def test_every_worker_is_a_rank_of_one_group_which_is_kept_while_the_servers_are_the_same(servers, log) -> None:
    sent, _ = broadcast(servers)
    assert (sent["faults"], sent["refusals"]) == ({}, {})
    assert sent["bytes"] == sum(tensor.numel() * 2 for tensor in TENSORS.values())
    told = [dict(asked[0][1]["init_info"]) for asked in servers.asked]
    assert [asked[0][0] for asked in servers.asked] == ["/init_weight_transfer_engine"] * 2
    assert [each["rank_offset"] for each in told] == [1, 3]
    assert {each["world_size"] for each in told} == {4}
    assert all(base64.b64decode(each["nccl_unique_id_b64"]) == UNIQUE_ID and not each["packed"] for each in told)
    names, shapes = list(TENSORS), [list(tensor.shape) for tensor in TENSORS.values()]
    info = {"names": names, "dtype_names": ["bfloat16"] * 2, "shapes": shapes}
    update = [("/start_weight_update", {}), ("/update_weights", {"update_info": info}), ("/finish_weight_update", {})]
    assert all(asked[1:] == update for asked in servers.asked)
    assert log == [
        ("join", True, 4),
        *(("broadcast", torch.bfloat16, tuple(tensor.shape)) for tensor in TENSORS.values()),
    ]
    broadcast(servers)
    assert [path for path, _ in servers.asked[0]].count("/init_weight_transfer_engine") == 1
    broadcast(servers, (1, 2))  # The second server is another one at the same URL.
    assert [path for path, _ in servers.asked[0]].count("/init_weight_transfer_engine") == 2
    assert log.count("abort") == 1


def test_a_server_that_does_not_join_leaves_the_others_their_weights(servers, log) -> None:
    servers.answers["1/init_weight_transfer_engine"] = 500
    sent, weights = broadcast(servers)
    assert set(sent["refusals"]) == set(servers.urls)
    assert "status 500" in sent["refusals"][servers.urls[0]]
    assert weights.passed == len(TENSORS), "the learner's other processes would wait for this one"
    assert "abort" in log
    assert not broadcasting._GROUPS


def test_a_server_that_fails_amid_the_tensors_ends_the_group_for_all(servers, log) -> None:
    log.fails = True
    servers.answers["1/update_weights"] = 500
    sent, weights = broadcast(servers)
    assert set(sent["faults"]) == set(servers.urls)
    assert "/update_weights: status 500" in sent["faults"][servers.urls[1]]
    assert weights.passed == len(TENSORS)
    assert log[-1] == "abort"
    assert not broadcasting._GROUPS
