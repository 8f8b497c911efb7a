"""What a machine is given to start a server from, and how a run sees a server that a host has started there."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agentrl.errors import BackendError, ConfigError, HostLostError, RunError
from agentrl.hosting.contract import HostSpec
from agentrl.hosting.local import LocalHosts
from agentrl.inference.contract import BackendContext
from agentrl_vllm import backend as backends
from agentrl_vllm import hosted
from agentrl_vllm.backend import VllmBackend, build_replicas
from agentrl_vllm.client import Client
from agentrl_vllm.hosted import HostedServer, ServerHost, read_model
from agentrl_vllm.settings import VllmSettings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"head": torch.randn(64, 32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"hidden_size": 32}')
    return folder


def test_a_machine_gets_the_small_files_and_weights_of_the_right_sizes_without_numbers(model, tmp_path) -> None:
    files = read_model(model)
    assert sum(map(len, files.files.values())) < 1000 < (model / "model.safetensors").stat().st_size
    there = tmp_path / "there"
    there.mkdir()
    hosted._write_model(files, there)
    assert (there / "config.json").read_text() == (model / "config.json").read_text()
    tensors = load_file(there / "model.safetensors")
    assert torch.equal(tensors["head"], torch.zeros(64, 32))


def host(**settings: Any) -> ServerHost:
    return ServerHost(name="vLLM server 0", number=0, settings=settings, sequences=4)


def test_a_folder_that_another_machine_does_not_see_is_told(tmp_path) -> None:
    own = host()
    starting = own.start(model=str(tmp_path / "gone"), address="127.0.0.1", key="k", adapter=None, seconds=5)
    with pytest.raises(ConfigError, match="does not see the model folder"):
        asyncio.run(starting)
    own.close()
    assert not own._folder.exists()


def test_an_adapter_is_put_beside_a_server_and_older_ones_go(tmp_path, model) -> None:
    own = host()
    path = Path(asyncio.run(own.place("../a1", {"adapter.safetensors": b"numbers"})))
    assert path.parent == own._folder
    assert (path / "adapter.safetensors").read_bytes() == b"numbers"
    asyncio.run(own.forget(["a1"]))
    assert not path.exists()
    own.close()


class FakeHost:
    """A host whose answers the test gives."""

    name, node, address = "host", "node 7", "10.0.0.7"

    def __init__(self, answers: dict[str, Callable[..., Any]]) -> None:
        self.answers, self.asked, self.stopped = answers, [], False

    def ask(self, method: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked.append((method, args, kwargs))
        future: Future[Any] = Future()

        def answer() -> None:
            try:
                future.set_result(self.answers[method](*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=answer, daemon=True).start()
        return future

    def stop(self, patience: float) -> None:
        self.stopped = True


class FakeHosts:
    """Places the hosts that it is given."""

    address, elsewhere = "10.0.0.1", True

    def __init__(self, *hosts: FakeHost) -> None:
        self.hosts, self.specs = list(hosts), []

    def start(self, specs: Any, *, patience: float, together: bool = True, given_up: Any = None) -> list[FakeHost]:
        self.specs += specs
        return [self.hosts.pop(0) for _ in specs]


def told(text: bytes = b"", *, alive: bool = True) -> dict[str, Any]:
    ending = "is running" if alive else "was ended by SIGKILL"
    return {"alive": alive, "ending": ending, "last": "the last line", "said": [], "text": text}


async def until(happens: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happens():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def server(hosts: FakeHosts, log: Path, model: Path, **more: Any) -> HostedServer:
    keys: dict[str, Any] = {"gpus": 2, "start_timeout": 30, "say": lambda text: None, "adapter": None, "key": "secret"}
    return HostedServer(
        hosts,
        VllmSettings(),
        name="vLLM server 0",
        number=0,
        sequences=4,
        model=lambda: read_model(model),
        log=log,
        **{**keys, **more},
    )


def test_a_server_is_placed_with_its_gpus_together_and_its_log_comes_back(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hosted, "_LOOK_S", 0.01)
    texts = [b"one\n", b"two\n"]
    states = lambda since: told(texts.pop(0) if texts else b"")  # noqa: E731
    own = FakeHost({"start": lambda **_: "http://10.0.0.7:1", "look": states, "place": lambda *_: "/there/a1"})
    hosts, log = FakeHosts(own), tmp_path / "logs" / "vllm-0.log"

    async def main() -> None:
        started = server(hosts, log, model)
        await started.start()
        assert (started.url, started.alive) == ("http://10.0.0.7:1", True)
        await until(lambda: not texts)
        assert await started.place(model) == "/there/a1"
        await started.stop()
        assert own.stopped

    asyncio.run(main())
    (spec,) = hosts.specs
    assert (spec.gpus, spec.target) == (2.0, "agentrl_vllm.hosted:ServerHost")
    assert "secret" not in str(spec)
    assert log.read_bytes() == b"one\ntwo\n"
    offsets = [args[0] for method, args, _ in own.asked if method == "look"]
    assert offsets[0] == 0
    assert offsets[-1] == 8


@pytest.mark.parametrize(
    ("look", "ending"),
    [
        (lambda since: told(alive=False), "was ended by SIGKILL on node 7"),
        ("lost", "was lost with its host on node 7: the machine is gone"),
    ],
)
def test_a_server_or_a_machine_that_is_gone_is_noticed(look, ending, model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hosted, "_LOOK_S", 0.01)

    def lost(since: int) -> None:
        raise HostLostError("the machine is gone")

    async def main() -> None:
        own = FakeHost({"start": lambda **_: "http://10.0.0.7:1", "look": lambda since: told()})
        started = server(FakeHosts(own), tmp_path / "log", model)
        await started.start()
        own.answers["look"] = lost if look == "lost" else look
        await until(lambda: not started.alive)
        assert started.ending == ending
        await started.stop()

    asyncio.run(main())


def test_a_start_that_fails_names_the_machine_and_leaves_no_host(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hosted, "_LOOK_S", 0.01)

    def fail(**_: Any) -> None:
        raise BackendError("the server ended with exit code 1")

    own = FakeHost({"start": fail, "look": lambda since: told()})
    with pytest.raises(BackendError, match="on node 7: the server ended with exit code 1"):
        asyncio.run(server(FakeHosts(own), tmp_path / "log", model).start())
    assert own.stopped


class FullHosts(FakeHosts):
    """Has no room before the start is given up; then a host may have been placed just before."""

    def start(self, specs: Any, *, patience: float, together: bool = True, given_up: Any = None) -> list[FakeHost]:
        self.specs += specs
        assert given_up.wait(30)
        if not self.hosts:
            raise RunError("there was no room")
        return self.hosts


@pytest.mark.parametrize("placed", [(), (FakeHost({}),)], ids=["none", "one"])
def test_an_interrupt_ends_the_wait_for_a_host_and_leaves_none(placed, model, tmp_path) -> None:
    hosts = FullHosts(*placed)

    async def main() -> None:
        starting = asyncio.ensure_future(server(hosts, tmp_path / "log", model, start_timeout=3600).start())
        await until(lambda: bool(hosts.specs))
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(main())
    assert all(each.stopped for each in placed)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed process takes none of its children with it")
def test_what_a_killed_host_has_left_goes_with_the_next_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    arguments = {"name": "vLLM server 0", "number": 0, "settings": {}, "sequences": 4}
    specs = [HostSpec(f"host {number}", "agentrl_vllm.hosted:ServerHost", arguments) for number in (0, 1)]
    killed, kept = LocalHosts().start(specs, patience=60)
    try:
        killed.ask("place", "a1", {"adapter.safetensors": b"numbers"}).result(30)
        own, other = (Path(each.ask("place", "a1", {}).result(30)).parent for each in (killed, kept))
        killed.kill()
        killed.stop(0.0)
        assert (own / "a1" / "adapter.safetensors").exists()
        host().close()
        assert not own.exists()
        assert other.exists()
    finally:
        for each in (killed, kept):
            each.stop(5.0)
    assert list(tmp_path.glob("agentrl-vllm-host-*")) == []


@pytest.mark.parametrize("keys", [{"devices": ["0"]}, {"port": 8000}])
def test_what_is_of_this_machine_alone_is_refused_where_a_scheduler_places_servers(keys, model, tmp_path) -> None:
    hosts = FakeHosts()
    context = BackendContext(model, hosts=hosts, options=keys)

    async def main() -> None:
        async with Client(1.0) as client:
            await build_replicas(
                context, VllmSettings.model_validate(keys), client, tmp_path, tmp_path, lambda: (model, 0), None
            )

    with pytest.raises(ConfigError, match="is for servers on this machine, and the scheduler places them"):
        asyncio.run(main())


def test_servers_that_a_scheduler_places_ask_for_a_key_and_cannot_share_the_learners_gpu(model, monkeypatch) -> None:
    context = BackendContext(model, hosts=FakeHosts())
    keys = {VllmBackend(context)._key for _ in range(2)}
    assert len(keys) == 2
    assert all(len(key) > 30 for key in keys)
    monkeypatch.setattr(backends, "find_cuda", lambda: True)
    with pytest.raises(ConfigError, match="and the scheduler places servers on any"):
        VllmBackend(BackendContext(model, hosts=FakeHosts(), options={"colocate": True}))
