"""What is settled before a replica is built: how long it may take, and the key that servers are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import ConfigError
from agentrl.inference.contract import BackendContext
from agentrl_vllm.building import key_of, start_timeout
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
