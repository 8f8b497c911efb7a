"""Servers that exist only as state, and a client that reaches them: what a real one cannot be made to do on demand."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from agentrl import tensor_digest
from agentrl.errors import RunError
from agentrl.inference.contract import TensorDigest
from agentrl_vllm.client import Reply, ServerFailed

VOCABULARY = 500
TENSORS = ("embedding", "head")
"""The tensors of a model; the numbers of each are its version."""

ADAPTER = ("head.lora_A.weight", "head.lora_B.weight")
"""The tensors of an adapter."""


def logprobs(version: float, ids: Sequence[int]) -> list[float]:
    """What a model of ``version`` says of ``ids[1:]``: each version moves a token's by 0.3 in the mean."""
    return [_logprob(version, one, other) for one, other in itertools.pairwise(ids)]


def _logprob(version: float, one: int, other: int) -> float:
    return -1 - (one * 31 + other * 17) % 97 / 97 - 0.6 * version * ((one * 13 + other * 7) % 31) / 30


def rounding(request: int, most: float, count: int) -> list[float]:
    """What a busy server adds that computes in few bits: as often up as down, another at each request."""
    chance = random.Random(request)
    return [chance.uniform(-most, most) for _ in range(count)]


class FakeWeights:
    """Of a learner whose model is ``logprobs``."""

    adapter = None

    def __init__(self, version: int, move: float = 1.0, lacks: Sequence[str] = ()) -> None:
        """``move`` is how far an update goes; ``lacks`` are tensors that are not handed over."""
        self.version, self.move, self.lacks = version, move, lacks

    def save(self, folder: Path) -> None:
        folder.mkdir()
        tensors = {name: tensor for name, tensor in self.tensors() if name not in self.lacks}
        save_file(tensors, folder / "model.safetensors")

    def names(self) -> list[str]:
        return [*TENSORS]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, torch.full((2,), float(self.version))) for name in TENSORS)

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        return logprobs(self.version * self.move, ids)

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        own = {name: TensorDigest("float32", (2,), tensor_digest(tensor)) for name, tensor in self.tensors()}
        return {name: own[name] for name in dtypes if name in own}


class AdapterWeights(FakeWeights):
    """Of a learner that trains an adapter over version 0: what its tensors hold is the version."""

    @property
    def adapter(self) -> FakeAdapter:  # type: ignore[override]
        return FakeAdapter(self.version)


class FakeAdapter:
    """The adapter of ``AdapterWeights``."""

    rank, scale, targets = 4, 2.0, ("head",)

    def __init__(self, version: int) -> None:
        self.version = version

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, torch.full((2,), float(self.version))) for name in ADAPTER)

    def save(self, folder: Path) -> None:
        save_file(dict(self.tensors()), folder / "adapter_model.safetensors")

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        all_ = {**dict.fromkeys(TENSORS, 0), **dict.fromkeys(ADAPTER, self.version)}
        return {
            name: TensorDigest("float32", (2,), tensor_digest(torch.full((2,), float(all_[name]))))
            for name in dtypes
            if name in all_
        }


class Unwritable(FakeWeights):
    """Finds the disk full."""

    def save(self, folder: Path) -> None:
        raise RunError(f"cannot write {folder}: No space left on device")


@dataclass
class FakeServer:
    """State of a server; ``faults`` are called instead of what they are named after."""

    folder: str
    tensors: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TENSORS, 0))
    """By name, the version of the weights that each is of."""
    cache: dict[str, float] = field(default_factory=dict)
    """By salt, the version of the weights that computed the prefix cache."""
    salts: bool = True
    """Whether it heeds salts."""
    label: str = "default"
    paused: bool = False
    dtype: str = "float32"
    tied: bool = False
    off: float = 0.0
    """What is added to each logprob."""
    rounding: float = 0.0
    """Most that rounding adds."""
    move: float = 1.0
    """How far an update goes."""
    resolved: int = 1
    """How many updates are as far as its type resolves."""
    inability: str = ""
    """Why it gives no digests."""
    stays: Sequence[str] = ()
    """The tensors that keep their numbers when weights are loaded."""
    calls: list[str] = field(default_factory=list)
    faults: dict[str, Callable[[], Any]] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)
    """Requests under way."""
    adapters: dict[str, float] = field(default_factory=dict)
    """By name, the version that each makes of the model; the workers know them by the order in which they came."""
    unloaded: list[str] = field(default_factory=list)
    keeps_old: bool = False
    """Whether a new name stands for the adapter before."""

    def answer(self, path: str, body: Any) -> Any:
        name = body["method"] if path == "/collective_rpc" else path.partition("?")[0].rpartition("/")[2]
        self.calls.append(name)
        if name in self.faults:
            return self.faults[name]()
        if name == "pause":
            return self.pause(path.partition("?")[2])
        return getattr(self, name)(*(body.get("args", [body]) if body else []))

    def agentrl_describe(self) -> Any:
        keys = {"dtype": self.dtype, "tied": self.tied, "vocabulary": VOCABULARY, "context": 300}
        keys |= {"sequences": 16, "chunks": False, "device": "cpu", "text": True}
        keys |= {"logprobs_mode": "processed_logprobs", "max_logprobs": 21}
        return {"results": [{"fault": None, "folder": self.folder, **keys}]}

    def agentrl_check(self, folder: str) -> Any:
        file = Path(folder) / "model.safetensors"
        there = load_file(file).keys() & set(TENSORS) if file.exists() else ()
        lacking = sorted(set(TENSORS) - set(there)) if there else []
        fault = None if Path(folder).is_dir() else f"{folder} is no folder"
        return {"results": [{"fault": f"the new weights lack {lacking[0]}" if lacking else fault}]}

    def agentrl_load(self, folder: str) -> Any:
        assert self.paused, "weights change under a server that samples"
        self.folder = folder
        version = 0 if Path(folder).name == "start" else int(Path(folder).name.removeprefix("v"))
        new = version // self.resolved * self.resolved
        self.tensors |= {name: new for name in TENSORS if name not in self.stays}
        return {"results": [{"fault": None}]}

    @property
    def weights(self) -> float:
        """The version that it computes with: between two where tensors are of both."""
        return mean(self.tensors.values())

    def load_lora_adapter(self, body: Any) -> Any:
        name = body["lora_name"]
        assert name not in self.adapters, "a name is used twice"
        tensors = load_file(Path(body["lora_path"]) / "adapter_model.safetensors")
        old = list(self.adapters.values())
        self.adapters[name] = old[-1] if self.keeps_old and old else float(tensors[ADAPTER[0]][0])

    def unload_lora_adapter(self, body: Any) -> Any:
        assert body["lora_name"] in self.adapters
        self.unloaded.append(body["lora_name"])

    def agentrl_adapters(self) -> Any:
        return {"results": [{"fault": None, "numbers": list(range(len(self.adapters)))}]}

    def agentrl_digests(self, adapter: str = "") -> Any:
        if self.inability:
            return {"results": [{"fault": None, "inability": self.inability}]}
        holds = dict(self.tensors)
        if adapter:
            holds |= dict.fromkeys(ADAPTER, list(self.adapters.values())[int(adapter)])
        held = {name: tensor_digest(torch.full((2,), float(of))) for name, of in holds.items()}
        tensors = {name: ["float32", [2], digest] for name, digest in held.items()}
        return {"results": [{"fault": None, "tensors": tensors, "absent": []}]}

    def agentrl_compare(self, folder: str) -> Any:
        if self.inability:
            return {"results": [{"fault": None, "inability": self.inability}]}
        given = Path(folder).name.removeprefix("v")
        unlike = [name for name, of in self.tensors.items() if of != (int(given) if given.isdecimal() else 0)]
        return {"results": [{"fault": None, "unlike": unlike, "absent": []}]}

    def pause(self, query: str) -> Any:
        self.paused = True
        if query == "mode=abort":
            self.held = []
        if query != "mode=keep&clear_cache=false":
            self.cache.clear()

    def resume(self) -> Any:
        self.paused = False

    def reset_prefix_cache(self) -> Any:
        self.cache.clear()
        return {"success": True}

    def update_weight_version(self, body: Any) -> Any:
        self.label = body["new_version"]

    def weight_info(self) -> Any:
        return {"weight_version": self.label}

    def generate(self, body: Any) -> Any:
        assert not self.paused, "a paused server was asked for tokens"
        ids, params = body["token_ids"], body["sampling_params"]
        new = [(7 * number + ids[-1]) % VOCABULARY for number in range(params["max_tokens"])]
        scores = "prompt_logprobs" in params
        salt = body.get("cache_salt", "") if self.salts else ""
        named = body.get("model")
        assert named not in self.unloaded, "a request names an adapter that is not there"
        weights = self.weights if named is None else self.adapters[named]
        version = weights if scores else self.cache.setdefault(salt, weights)
        errors = rounding(len(self.calls), self.rounding, len(ids) + len(new) - 1)
        exact = logprobs(version * self.move, [*ids, *new])
        stated = [logprob + self.off + error for logprob, error in zip(exact, errors, strict=True)]
        pairs = zip(ids[1:], stated, strict=False)
        said = zip(new, stated[-len(new) :], strict=True)
        content = [{"token_id": token, "logprob": each, "top_logprobs": []} for token, each in said]
        chosen = {
            "token_ids": new,
            "logprobs": {"content": content},
            "weight_versions": [{"version": self.label, "start": 0, "end": len(new)}],
            "finish_reason": "length",
            "stop_reason": None,
        }
        return {
            "choices": [chosen],
            "prompt_logprobs": [None, *({str(token): {"logprob": each}} for token, each in pairs)] if scores else None,
        }


class FakeClient:
    """Reaches the servers of ``by_url``."""

    def __init__(self, by_url: dict[str, FakeServer]) -> None:
        self.by_url = by_url

    async def post(self, url: str, path: str, body: object = None, *, seconds: float | None = None) -> Any:
        assert seconds or path.endswith("/generate"), f"{path} may hang for ever"
        await asyncio.sleep(0)
        answer = self.by_url[url].answer(path, body)
        if answer is HANGS:
            await asyncio.Event().wait()
        return answer

    async def reply(self, url: str, path: str, body: object = None) -> Any:
        value = await self.post(url, path, body, seconds=1)
        return value if isinstance(value, Reply) else Reply(200, b"Success")

    async def get(self, url: str, path: str, *, seconds: float | None = None) -> Any:
        return await self.post(url, path, seconds=seconds)


async def _same(folder: Path) -> str:
    return str(folder)


class FakeReplica:
    """As ``Replica``, which nobody brings back."""

    def __init__(self, url: str, name: str = "vLLM server 0", *, folder: Path = Path(), ours: bool = True) -> None:
        self.url, self.state, self.version, self.life = url, "ready", 0, 1
        self.folder, self.reason = folder, None
        self.server = SimpleNamespace(name=name, ours=ours, place=_same)
        self.is_busy = False

    def fail(self, reason: str, *, life: int | None = None) -> None:
        if self.state == "ready" and life in (None, self.life):
            self.state, self.version, self.reason = "starting", None, reason

    async def while_ready(self, call: Awaitable[Any]) -> Any:
        asking = asyncio.ensure_future(call)
        try:
            while self.state == "ready" and not asking.done():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        finally:
            is_lost = not asking.done()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        if is_lost:
            raise ServerFailed(str(self.reason))
        return asking.result()

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.is_busy = True
        yield
        self.is_busy = False


HANGS = object()
"""An answer that never comes."""


def hangs() -> Any:
    """A fault: the server is silent."""
    return HANGS


def fails(reason: str) -> Callable[[], Any]:
    """A fault: the server fails."""

    def fail() -> Any:
        raise ServerFailed(reason)

    return fail


def finds(fault: str) -> Callable[[], Any]:
    """A fault that a worker reports."""
    return lambda: {"results": [{"fault": None}, {"fault": fault}]}
