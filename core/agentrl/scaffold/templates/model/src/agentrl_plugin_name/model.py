"""The model ``plugin-name``: a Hugging Face folder, made when it is first used."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from agentrl import Plugins
from transformers import AutoModelForCausalLM, AutoTokenizer


def model_folder() -> Path:
    """The folder of the model. It is whole, or not there."""
    folder = _cache() / "plugin-name"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            aside = Path(scratch) / folder.name
            _make(aside)
            if not folder.exists():  # Another process may have been faster.
                aside.rename(folder)
    return folder


def _make(folder: Path) -> None:
    """Write the model. This one starts from ``tiny``; put your own in its place."""
    start = str(Plugins().get("models", "tiny"))
    AutoModelForCausalLM.from_pretrained(start).save_pretrained(folder)
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache") / "agentrl-plugin-name"
