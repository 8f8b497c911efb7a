"""The backend built from its settings, started and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fleet_of_fakes import FakeServer
from stub import Answer, Stub, stub
from well import GENERATE, TINY, WELL

from agentrl.errors import BackendError, ConfigError
from agentrl.inference.contract import BackendContext
from agentrl_vllm.backend import VllmBackend, key_of, start_timeout
from agentrl_vllm.settings import VllmSettings


def seconds(timeout: float | None, **settings: Any) -> float:
    return start_timeout(BackendContext(Path("/model"), timeout=timeout), VllmSettings(**settings))


def test_a_replica_has_less_time_than_the_start_as_a_whole() -> None:
    assert seconds(None) == seconds(600) == 570
    assert seconds(None, start_timeout=9000) == 9000
    assert seconds(600, start_timeout=599) == 599
    assert seconds(100) == 95, "by default it is fitted in"


def test_more_time_for_a_replica_than_for_the_start_as_a_whole_is_refused_and_both_keys_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"inference\.backend\.start_timeout=600 is not less than inference\.timeout=600,"
    ):
        seconds(600, start_timeout=600)


def test_the_key_is_taken_from_the_variable_that_is_named() -> None:
    settings = VllmSettings(urls=["http://gpu-1"], api_key_env="SERVERS_KEY")
    assert key_of(settings, {"SERVERS_KEY": " sk-1\n"}) == "sk-1"
    assert key_of(VllmSettings(), {"SERVERS_KEY": "sk-1"}) is None
    for environ in ({}, {"SERVERS_KEY": " "}):
        with pytest.raises(ConfigError, match=r"the environment variable SERVERS_KEY, which .*api_key_env names"):
            key_of(settings, environ)


DEADLINE_S = 60.0


def attached(
    server: FakeServer, folder: Path, scenario: Callable[[VllmBackend, Stub], Awaitable[Any]], **settings: Any
) -> list[str]:
    """What a backend says that is attached to ``server``."""
    said: list[str] = []

    async def handle(path: str, body: Any) -> Answer:
        if path in WELL and not (path == GENERATE and body):
            return WELL[path][0], WELL[path][1]
        return 200, server.answer(path, body)

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S), stub(handle) as listening:
            options = {"urls": [listening.url], "weights_dir": str(folder), **settings}
            backend = VllmBackend(BackendContext(TINY, options=options, say=said.append, logs=folder))
            try:
                await scenario(backend, listening)
            finally:
                await backend.stop()

    asyncio.run(main())
    return said


def test_a_server_is_looked_at_then_given_its_weights_then_asked_for_tokens(tmp_path: Path) -> None:
    server = FakeServer("tiny", paused=True, held=["a request of a run that was killed"])

    async def scenario(backend: VllmBackend, listening: Stub) -> None:
        capabilities = await backend.start()
        assert capabilities.context_length == 300
        assert (server.paused, server.held, server.label) == (False, [], "0")
        assert [replica.state for replica in backend.replicas] == ["ready"]

    said = attached(server, tmp_path, scenario)
    assert [server.calls[0], *(name for name in server.calls if name in ("agentrl_load", "generate"))][:3] == [
        "agentrl_describe",
        "agentrl_load",
        "generate",
    ]
    assert said == [
        "vLLM 0.32.0 on cpu in float32: context 300, 16 sequences at once; samples temperature 0.01 to 2, grammar, "
        "seed, stop, top_k, top_logprobs, top_p; not logit_bias"
    ]


def test_one_that_cannot_be_used_is_left_as_it_is(tmp_path: Path) -> None:
    server = FakeServer("tiny", held=["somebody's request"])
    told = server.agentrl_describe()
    told["results"][0]["logprobs_mode"] = "raw_logprobs"
    server.faults["agentrl_describe"] = lambda: told

    async def scenario(backend: VllmBackend, listening: Stub) -> None:
        with pytest.raises(BackendError, match="--logprobs-mode processed_logprobs"):
            await backend.start()

    attached(server, tmp_path, scenario)
    assert server.calls == ["agentrl_describe"]
    assert server.held == ["somebody's request"]


def test_times_that_do_not_fit_and_keys_that_are_not_set_are_refused_before_anything_starts() -> None:
    urls = ["http://127.0.0.1:1"]
    with pytest.raises(ConfigError, match=r"start_timeout=90 is not less than inference\.timeout=60"):
        VllmBackend(BackendContext(TINY, options={"urls": urls, "start_timeout": 90}, timeout=60))
    with pytest.raises(ConfigError, match="the environment variable NOBODY_SETS_THIS"):
        VllmBackend(BackendContext(TINY, options={"urls": urls, "api_key_env": "NOBODY_SETS_THIS"}))
