"""Real vLLM servers: how they start and fail to, what is left when any of their processes is killed, and attaching."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from real import START_S
from servers import nothing_left, processes

from agentrl.environ import WORKER
from agentrl.errors import BackendError
from agentrl.plugins import Plugins
from agentrl_vllm.attached import AttachedServer
from agentrl_vllm.client import Client
from agentrl_vllm.replica import Replica
from agentrl_vllm.server import Server

pytestmark = pytest.mark.real

TINY = Path(str(Plugins().get("models", "tiny")))
NOT_SPINNING = "without spinning"
GENERATE = {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 4}}


def complete(coroutine: Any) -> Any:
    """Run ``coroutine`` to its end, which has to come."""

    async def bounded() -> Any:
        async with asyncio.timeout(3 * START_S):
            return await coroutine

    return asyncio.run(bounded())


def family(log: Path) -> list[psutil.Process]:
    """All processes of a server; vLLM's titles of some take the place of the environment that the mark is in."""
    marked = [each for each in processes(log) if "supervisor.py" not in " ".join(each.cmdline())]
    return list({each.pid: each for one in marked for each in [one, *one.children(recursive=True)]}.values())


def process_of(log: Path, name: str) -> psutil.Process:
    """The API server, or the process that vLLM calls ``name``."""
    return next(each for each in family(log) if name in " ".join(each.cmdline()))


def shared_memory(log: Path) -> set[Path]:
    """The files in shared memory that a server has open."""
    paths = {Path(mapped.path) for each in family(log) for mapped in each.memory_maps()}
    return {path for path in paths if path.is_relative_to("/dev/shm") and path.name.startswith("psm_")}


def test_a_real_server_answers_with_token_ids(real_server: Server) -> None:
    async def asked() -> Any:
        async with Client(START_S) as client:
            return await client.post(real_server.url, "/inference/v1/generate", GENERATE)

    assert len(complete(asked())["choices"][0]["token_ids"]) == 4


def test_the_engine_and_the_worker_of_a_real_server_stop_spinning(real_server: Server, real_server_log: Path) -> None:
    """Each line of its log begins with the process that printed it."""
    said = real_server_log.read_text(encoding="utf-8")
    loaded = {
        line.partition(")")[0].lstrip("(").partition(" ")[0] for line in said.splitlines() if NOT_SPINNING in line
    }
    assert {"EngineCore", "VllmWorker-0"} <= loaded


def test_a_real_server_can_be_attached_to(real_server: Server) -> None:
    attached = AttachedServer(real_server.url, TINY)
    complete(attached.start())
    assert attached.model == real_server.model


def test_a_real_server_of_another_model_is_refused(real_server: Server, tmp_path: Path) -> None:
    other = shutil.copytree(TINY, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    letters = tokenizer["model"]["vocab"]
    letters["a"], letters["e"] = letters["e"], letters["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BackendError, match="serves the wrong model: "):
        complete(AttachedServer(real_server.url, other).start())


def test_a_real_server_sees_none_of_our_secrets(real_server: Server, real_server_log: Path) -> None:
    environ = process_of(real_server_log, "api_server").environ()
    assert environ[WORKER]
    assert "OPENAI_API_KEY" not in environ


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"args": ["--no-such-flag"]}, "unrecognized arguments: --no-such-flag"),
        ({"args": ["--max-model-len", "4000"]}, "User-specified max_model_len (4000) is greater than"),
    ],
)
def test_a_flag_that_the_server_refuses_is_shown(
    real: Callable[..., Server], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    log = tmp_path / "log"
    with pytest.raises(BackendError) as caught:
        complete(real(TINY, log, **settings).start())
    assert message in caught.value.message.partition("; it printed last")[0]
    assert caught.value.fix == f"all of its output is in {log}"
    assert nothing_left(log)


def test_a_model_without_weights_is_said_to_have_none(real: Callable[..., Server], tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    log = tmp_path / "log"
    with pytest.raises(BackendError, match=r"while loading the weights: RuntimeError: Cannot find any model weights"):
        complete(real(folder, log).start())
    assert nothing_left(log)


def test_a_replica_outlives_the_death_of_any_of_its_processes(real: Callable[..., Server], tmp_path: Path) -> None:
    log = tmp_path / "log"
    shared: set[Path] = set()

    async def admit(replica: Replica) -> None:
        replica.version = 0

    async def killed() -> None:
        client = Client(START_S)
        replica = Replica(0, lambda folder: real(folder, log), lambda: (TINY, 0), admit, client=client)
        await replica.start()
        try:
            for life, name in enumerate(["VLLM::EngineCore", "api_server"], start=1):
                victims = family(log)
                shared.update(shared_memory(log))
                process_of(log, name).kill()
                while (replica.life, replica.state) != (life + 1, "ready"):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                assert not any(victim.is_running() for victim in victims)
                await client.post(replica.url, "/inference/v1/generate", GENERATE)
            process_of(log, "VLLM::Worker").suspend()
        finally:
            await replica.stop()
            await client.close()

    complete(killed())
    assert nothing_left(log)
    assert len(shared) >= 2
    assert not any(path.exists() for path in shared)
