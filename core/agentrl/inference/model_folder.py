"""Model folders: from a model's name (bundled, a local folder or a Hugging Face id) to the folder of its weights."""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentrl.config.models import ModelSection
from agentrl.errors import ConfigError, PluginError, near_files, near_matches, one_line, shortened
from agentrl.inference.adapter_folder import base_of, is_adapter
from agentrl.plugins import Plugins

__all__ = [
    "count_parameters",
    "downloaded",
    "find_model",
    "newest_checkpoint",
    "no_progress_bars",
    "saved_checkpoints",
    "vocabulary_of",
]

_CHECKPOINT = re.compile(r"step-(\d{6,})")

_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def find_model(plugins: Plugins, model: ModelSection) -> Path:
    """Returns the Hugging Face folder of ``model``, downloaded where it is a hub id that is not in the cache.

    An adapter's folder is returned as it is, once its base model is known to be there.

    A plugin may make or fetch its bundled model at the first use; a run's folder stands for its newest checkpoint.
    Raises ``ConfigError`` for a name that is none of the three, or a folder that holds no model, and ``PluginError``
    where a plugin cannot provide its model.
    """
    bundled = {entry.name for entry in plugins.entries("models")}
    if model.name in bundled or _is_distribution_name(model.name, bundled):
        return _checked(_provided(plugins.get("models", model.name), model.name))
    folder = Path(os.path.expanduser(model.name))
    if folder.is_dir():
        return _checked(_saved(folder) if _is_run(folder) else folder)
    if model.name.count("/") != 1 or model.name.startswith((".", "/", "~")):
        raise ConfigError(
            f"model {model.name!r} is no bundled model, no folder and no Hugging Face id",
            fix=_brought(model.name) or _near(folder, bundled),
        )
    return _checked(downloaded(model.name))


def _near(folder: Path, bundled: Iterable[str]) -> str:
    """A hint for a name that is neither a model nor a folder: a run of that name, or similar names beside it."""
    found = sorted(Path().glob(f"*/{glob.escape(folder.name)}/config.yaml")) if folder.name else []
    runs = [str(config.parent) for config in found]
    if runs:
        return "did you mean " + " or ".join(map(repr, runs)) + "?"
    return _beside(folder) if len(folder.parts) > 1 else near_matches(folder.name, bundled)


def _beside(folder: Path) -> str:
    return near_files(folder, [path for path in folder.parent.glob("*") if path.is_dir()], "folder")


def _brought(name: str) -> str | None:
    """How to install the plugin that brings a model of this name, if one is known."""
    from agentrl.plugins.entries import install_command, provider

    project = provider("models", name)
    return None if project is None else f"it comes with {project}: {install_command(project)}"


def saved_checkpoints(run: Path) -> dict[int, Path]:
    """The complete checkpoints in a run folder by the optimiser steps that made them."""
    saved = run / "checkpoints"
    names = [path.name for path in saved.iterdir()] if saved.is_dir() else []
    return {int(match[1]): saved / name for name in names if (match := _CHECKPOINT.fullmatch(name))}


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run after the most optimiser steps; ``None`` where there is no complete one."""
    saved = saved_checkpoints(run)
    return saved[max(saved)] if saved else None


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and not ((folder / "config.json").is_file() or is_adapter(folder))


def _saved(run: Path) -> Path:
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f"the run {run} has saved no checkpoint", fix="name a model folder")
    return checkpoint


def _provided(model: object, name: str) -> Path:
    """The folder that a plugin registered, or that its registered function returns."""
    folder = model() if callable(model) else model
    if not isinstance(folder, str | os.PathLike):
        raise PluginError(
            f"model {name!r} is registered as {folder!r}, which is no folder",
            fix="register a path, or a function without arguments that returns one",
        )
    return Path(folder)


def _is_distribution_name(name: str, bundled: set[str]) -> bool:
    """Whether ``name`` is ``distribution/bundled-name`` rather than a hub id."""
    return name.count("/") == 1 and name.split("/")[1] in bundled and not Path(name).exists()


def downloaded(name: str) -> Path:
    """Returns the folder of a Hugging Face id. Raises ``ConfigError`` where neither the cache nor the hub has it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        near = f"{_beside(Path(name))}; or " if Path(name).parent.is_dir() else ""
        raise ConfigError(
            f"model {name!r} is no folder, and the Hugging Face hub does not provide it: {shortened(one_line(error))}",
            fix=f"{near}check the path or the id, or log in with `hf auth login` for a gated model",
        ) from error


def _checked(folder: Path) -> Path:
    base = base_of(folder)  # Raises for an adapter whose base is gone.
    if not (base / "config.json").is_file():
        raise ConfigError(
            f"model folder {base} has no config.json",
            fix="name a folder that `save_pretrained` wrote, with its tokenizer",
        )
    return folder


def vocabulary_of(folder: Path) -> int:
    """Returns how many token ids the model in ``folder`` knows; its tokenizer may know fewer."""
    from transformers import AutoConfig

    size: int = AutoConfig.from_pretrained(base_of(folder)).get_text_config().vocab_size
    return size


def count_parameters(folder: Path) -> int:
    """How many parameters the model in ``folder`` has, without loading it; of an adapter's folder, its base model."""
    folder = base_of(folder)
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return sum(_parameters_in(file) for file in files)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))  # type: ignore[no-untyped-call]
    return int(model.num_parameters())


def _parameters_in(file: Path) -> int:
    """The parameters in a file of safetensors, whose header holds all shapes."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Within it transformers draws no progress bars, which would scroll through the run's own display."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
