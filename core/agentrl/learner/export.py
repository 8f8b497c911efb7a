"""Exporting: a checkpoint without what only a run needs of it, for whoever serves or shares the model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from agentrl.errors import ConfigError, RunError, cannot_write
from agentrl.inference.adapter_folder import ADAPTER_CONFIG, is_adapter, read_adapter
from agentrl.learner.folder import write_merged

__all__ = ["export"]

_OF_RUNS = ("learner.pt", "learner", "checkpoint.json")
_CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[0-9a-f]+")
"""The folder of a model of the hub in the cache, whose id says more elsewhere than its path."""


def export(model: Path, out: Path, *, merge: bool = False) -> None:
    """Write the model in the folder ``model`` into the new folder ``out``.

    An adapter stays one, in peft's format, with the tokenizer; with ``merge`` it becomes a whole model in its base's
    dtype, which needs neither peft nor the base. A whole model is copied. ``out`` is there once it is complete. Raises
    ``ConfigError`` where it is there already, for ``merge`` of a whole model, and an adapter without its base, and
    ``RunError`` where a file cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already, and nothing is overwritten", fix="name a folder that is not there")
    if merge and not is_adapter(model):
        raise ConfigError(f"{model} is a whole model: there is no adapter to merge", fix="leave --merge out")
    staged = out.with_name(f".{out.name}-{uuid4().hex[:8]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if merge:
            write_merged(model, staged)
            for name in _OF_RUNS:
                (staged / name).unlink(missing_ok=True)
        else:
            shutil.copytree(model, staged, ignore=shutil.ignore_patterns(*_OF_RUNS))
            if is_adapter(model):
                _name_base(model, staged / ADAPTER_CONFIG)
        staged.rename(out)
    except (OSError, SafetensorError, RunError) as error:
        failed = error if isinstance(error, RunError) else cannot_write(out, error)
        raise RunError(failed.message, fix="free some space, or name a folder that can be written") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _name_base(model: Path, path: Path) -> None:
    """Write the hub's id of the base model where it came from there, else where it is."""
    base = read_adapter(model).base
    cached = _CACHED.search(base.as_posix())
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = f"{cached['owner']}/{cached['name']}" if cached else str(base)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
