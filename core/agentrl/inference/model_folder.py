"""From a model's name to a folder of its weights: a bundled name, a local folder or a Hugging Face id."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from agentrl.config.models import ModelSection
from agentrl.errors import ConfigError, PluginError, near_files, near_matches, one_line, shortened
from agentrl.plugins import Plugins

__all__ = ["find_model", "newest_checkpoint", "vocabulary_of"]

_CHECKPOINT = re.compile(r"step-(\d{6,})")

_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def find_model(plugins: Plugins, model: ModelSection) -> Path:
    """The Hugging Face folder of ``model``, downloaded where it is a hub id that is not in the cache.

    A bundled model may be made, or fetched, at its first use; a run's folder means its newest checkpoint. Raises
    ``ConfigError`` for a name that is none of the three, or a folder that holds no model, and ``PluginError`` where a
    plugin cannot provide its model.
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
    return _checked(_downloaded(model.name))


def _near(folder: Path, bundled: Iterable[str]) -> str:
    """What may be meant by a name that is neither a model nor a folder: a run of that name, or what is beside it."""
    found = sorted(Path().glob(f"*/{glob.escape(folder.name)}/config.yaml")) if folder.name else []
    runs = [str(config.parent) for config in found]
    if runs:
        return "did you mean " + " or ".join(map(repr, runs)) + "?"
    return _beside(folder) if len(folder.parts) > 1 else near_matches(folder.name, bundled)


def _beside(folder: Path) -> str:
    return near_files(folder, [path for path in folder.parent.glob("*") if path.is_dir()], "folder")


def _brought(name: str) -> str | None:
    """How the plugin is installed that brings a model of this name, if one is known."""
    from agentrl.plugins.entries import install_command, provider

    project = provider("models", name)
    return None if project is None else f"it comes with {project}: {install_command(project)}"


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run after the most steps; half-written ones do not count."""
    saved = run / "checkpoints"
    names = [path.name for path in saved.iterdir()] if saved.is_dir() else []
    steps = {int(match[1]): name for name in names if (match := _CHECKPOINT.fullmatch(name))}
    return saved / steps[max(steps)] if steps else None


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and not (folder / "config.json").is_file()


def _saved(run: Path) -> Path:
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f"the run {run} has saved no checkpoint", fix="name a model folder")
    return checkpoint


def _provided(model: object, name: str) -> Path:
    """The folder that a plugin names, or that a function of its makes when the model is first used."""
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


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        near = f"{_beside(Path(name))}; or " if Path(name).parent.is_dir() else ""
        raise ConfigError(
            f"model {name!r} is no folder, nor to be had from the Hugging Face hub: {shortened(one_line(error))}",
            fix=f"{near}check the path or the id, or log in with `hf auth login` for a gated model",
        ) from error


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model folder {folder} has no config.json",
            fix="name a folder that `save_pretrained` wrote, with its tokenizer",
        )
    return folder


def vocabulary_of(folder: Path) -> int:
    """How many ids the model in ``folder`` knows; a tokenizer may know fewer."""
    from transformers import AutoConfig

    size: int = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
    return size
