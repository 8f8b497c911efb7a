"""Where the processes of a learner are placed: which device each has, and what cannot be."""

from __future__ import annotations

import torch

from agentrl.config.models import Config
from agentrl.errors import ConfigError
from agentrl.hosting.contract import Hosts
from agentrl.machine import usable_processors
from agentrl.training.learner_device import is_elsewhere, learner_device

__all__ = ["check_placement", "placed", "rank_configs"]

_KEY = "training.processes"


def check_placement(config: Config, *, starts: bool) -> None:
    """Raise ``ConfigError`` where the processes of ``config.training`` cannot be had; nothing is started.

    ``starts`` says whether the scheduler starts processes.
    """
    training, count = config.training, config.training.processes
    if count == 1:
        return
    if not starts:
        raise ConfigError(
            f"training.processes={count} cannot be with scheduler.type={config.scheduler.type}, which starts none",
            fix="set scheduler.type=local, or training.processes=1",
            key=_KEY,
        )
    if training.device.startswith("cuda:"):
        raise ConfigError(
            f"training.device={training.device} is one GPU, and each of training.processes={count} needs its own",
            fix="set training.device=cuda, which gives process N the device cuda:N",
            key="training.device",
        )
    if is_elsewhere(config):
        return
    gpus = torch.cuda.device_count()
    if learner_device(config).type == "cuda" and count > gpus:
        raise ConfigError(
            f"training.processes={count} is more than the {gpus} GPUs of this machine, of which each process needs one",
            fix=f"set training.processes={gpus}, or training.device=cpu",
            key=_KEY,
        )


def rank_configs(config: Config, hosts: Hosts) -> list[Config]:
    """The config of each process of the learner, with its device."""
    training, count = config.training, config.training.processes
    if count == 1 and not hosts.elsewhere:
        return [config]
    device = learner_device(config).type if training.device == "auto" else training.device
    # Elsewhere a process sees only the GPU that it was given.
    devices = [f"cuda:{rank}" if device == "cuda" and not hosts.elsewhere else device for rank in range(count)]
    return [config.setting("training", training.model_copy(update={"device": each})) for each in devices]


def placed(config: Config) -> str:
    """Where the learner's processes will be, in a sentence."""
    count = config.training.processes
    if is_elsewhere(config):
        on = "on a GPU each"
        if learner_device(config).type != "cuda":
            no_gpu = ", since training.device=auto goes by this machine, which has no GPU"
            on = f"on CPUs{no_gpu if config.training.device == 'auto' else ''}"
        return f"{count} processes train the model, where scheduler.type={config.scheduler.type} places them, {on}"
    if learner_device(config).type == "cuda":
        return f"{count} processes of this machine train the model, on cuda:0 to cuda:{count - 1}"
    processors = usable_processors()
    each, threads = max(1, processors // count), "thread" if processors < 2 * count else "threads"
    few = f", though it has only {processors} processors" if count > processors else ""
    return f"{count} processes of this machine train the model, with {each} {threads} each{few}"
