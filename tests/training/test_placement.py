"""Where the processes of a learner are placed, and what cannot be."""

from __future__ import annotations

import pytest
import torch

from agentrl import load_config
from agentrl.config.models import Config
from agentrl.errors import ConfigError
from agentrl.hosting.local import LocalHosts
from agentrl.training.placement import check_placement, placed, rank_configs


def config_of(*settings: str) -> Config:
    return load_config(None, *settings, environ={})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


class Elsewhere(LocalHosts):
    elsewhere = True


def devices(config: Config, hosts: LocalHosts) -> list[str]:
    return [each.training.device for each in rank_configs(config, hosts)]


def test_without_gpus_processes_share_the_processors() -> None:
    config = config_of("training.processes=2", "training.device=cpu")
    check_placement(config, starts=True)
    assert devices(config, LocalHosts()) == ["cpu", "cpu"]
    assert "2 processes of this machine train the model, with" in placed(config)
    assert "though it has only" in placed(config_of("training.processes=4096", "training.device=cpu"))


def test_each_process_has_a_gpu_of_its_own(two_gpus: None) -> None:
    config = config_of("training.processes=2")
    check_placement(config, starts=True)
    assert devices(config, LocalHosts()) == ["cuda:0", "cuda:1"]
    assert placed(config) == "2 processes of this machine train the model, on cuda:0 to cuda:1"
    with pytest.raises(ConfigError, match=r"training.processes=3 is more than the 2 GPUs of this machine") as error:
        check_placement(config_of("training.processes=3"), starts=True)
    assert error.value.fix == "set training.processes=2, or training.device=cpu"
    check_placement(config_of("training.processes=3", "training.device=cpu"), starts=True)


def test_elsewhere_a_process_sees_the_one_gpu_that_it_was_given(two_gpus: None) -> None:
    config = config_of("training.processes=3", "scheduler=ray")
    check_placement(config, starts=True)
    assert devices(config, Elsewhere()) == ["cuda"] * 3
    assert devices(config_of("training.device=cpu", "scheduler=ray"), Elsewhere()) == ["cpu"]
    assert placed(config) == "3 processes train the model, where scheduler.type=ray places them, on a GPU each"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_it_is_said_why_ranks_elsewhere_use_no_gpu() -> None:
    config = config_of("training.processes=3", "scheduler=ray")
    assert placed(config).endswith(
        "places them, on CPUs, since training.device=auto goes by this machine, which has no GPU"
    )
    assert placed(config.setting("training", config.training.model_copy(update={"device": "cpu"}))).endswith("on CPUs")


@pytest.mark.parametrize(
    ("settings", "starts", "told"),
    [
        (("training.device=cuda:1",), True, r"training.device=cuda:1 is one GPU, and each of training.processes=2"),
        ((), False, r"training.processes=2 cannot be with scheduler.type=local, which starts none"),
    ],
)
def test_what_cannot_be_is_refused(settings: tuple[str, ...], starts: bool, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_placement(config_of("training.processes=2", *settings), starts=starts)


def test_one_process_is_always_possible() -> None:
    check_placement(config_of("training.device=cuda:1"), starts=False)
