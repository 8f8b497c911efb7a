"""The device that a configuration names."""

from __future__ import annotations

import torch

from agentrl.errors import ConfigError

__all__ = ["find_device"]

_FIX = "use auto, cpu, cuda or cuda:N"


def find_device(name: str, key: str) -> torch.device:
    """The device that ``key`` names. Raises ``ConfigError`` for one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}={name!r} is no device", fix=_FIX) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key}={name!r}, but what it is for runs on CPU and CUDA", fix=_FIX)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"torch sees {count} CUDA devices" if count else "torch finds no CUDA device"
        raise ConfigError(f"{key}={name!r}, but {found}", fix=_FIX)
    return device
