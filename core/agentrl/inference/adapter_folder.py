"""Adapter folders: an adapter of low rank in peft's format, and the base model that it belongs to.

A checkpoint of a run that trains an adapter is one: ``adapter_config.json``, which names the base model's folder, and
``adapter_model.safetensors``, with the tokenizer and the config of the base beside them.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "AdapterFolder",
    "base_of",
    "is_adapter",
    "read_adapter",
    "tokenizer_folder",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
}
"""The values of peft's keys under which an adapter is ``weight + scale · B @ A`` of the same rank in every layer."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """What an adapter folder says of its adapter."""

    folder: Path
    base: Path
    """The folder of the model that it is an adapter of."""
    rank: int
    scale: float
    """The factor of ``B @ A``."""
    targets: tuple[str, ...] = ()
    """The last parts of the names of the adapted layers; empty where they are named by a pattern."""


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter, and no model of its own."""
    return Path(folder, ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> Path:
    """The folder of the base model where ``folder`` holds an adapter, else ``folder``. Raises as ``read_adapter``."""
    return read_adapter(folder).base if is_adapter(folder) else folder


def tokenizer_folder(folder: Path) -> Path:
    """The folder that the tokenizer of the model in ``folder`` is in: an adapter's own, or that of its base."""
    own = any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    return folder if own else base_of(folder)


def read_adapter(folder: Path) -> AdapterFolder:
    """What the ``adapter_config.json`` in ``folder`` says.

    A base that is no folder but a Hugging Face id is downloaded where it is not in the cache. Raises ``ConfigError``
    for a file that cannot be read, an adapter of another kind, and a base model that is gone.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha, named = int(config["r"]), float(config["lora_alpha"]), config["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not what peft writes of a LoRA adapter: {type(error).__name__}: {error}",
            fix="name a folder that agentrl or peft saved",
        ) from error
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise ConfigError(
                f"the adapter in {folder} has {key}={config[key]!r}, which only peft can compute",
                fix="merge it with peft's merge_and_unload(), save the whole model, and name that folder",
            )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    listed = config.get("target_modules")
    targets = tuple(sorted(map(str, listed))) if isinstance(listed, list) else ()
    return AdapterFolder(folder, _base(folder, named), rank, scale, targets)


def _base(folder: Path, named: object) -> Path:
    if not isinstance(named, str) or not named:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} does not name its base model", fix=_MEND)
    for path in (Path(os.path.expanduser(named)), folder / named):
        if path.is_dir():
            if is_adapter(path):
                raise ConfigError(
                    f"the base of the adapter in {folder} is {path}, which is an adapter itself",
                    fix=f"make a whole model of that first: agentrl export {path} OUT --merge",
                )
            return path.absolute()
    if named.count("/") != 1 or named.startswith((".", "/", "~")):
        raise ConfigError(f"the base model of the adapter in {folder} was {named}, which is not there", fix=_MEND)
    from agentrl.inference.model_folder import downloaded

    return downloaded(named)


_MEND = f"put the base model back, or write where it is now as base_model_name_or_path into {ADAPTER_CONFIG}"
