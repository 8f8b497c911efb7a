"""The bundled model `smollm2-135m`: its folder is made at the first use."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from agentrl_smollm2.package import WEIGHTS, weights
from agentrl_smollm2.store import FolderStore

__all__ = ["smollm2_135m"]

_RECIPE = 1
"""The conversion's version, part of the folder's name: a change of the conversion makes a new folder."""


SUGGESTS: Mapping[str, Any] = {
    "tasks.train": {"name": "arithmetic", "digits": 1, "size": 86},
    "tasks.eval": {"name": "arithmetic-heldout", "digits": 1, "size": 14},
    "rollout.max_tokens": 16,
    "training.steps": 16,
    "evaluation.samples_per_task": 4,
}
"""What a run takes in the place of the defaults where nobody has chosen tasks: all sums of one digit, in answers of one
line. Sums of two digits, core's default, are beyond the model."""


@cache
def _folder() -> Path:
    store = FolderStore(user_cache_path("agentrl") / "models" / f"smollm2-135m-{WEIGHTS.sha256[:8]}-{_RECIPE}")
    return store.get() or store.put(_make)


class _Model:
    """The registered model: called for its folder, and asked for what it suggests."""

    suggests = SUGGESTS

    def __call__(self) -> Path:
        """Returns the Hugging Face folder of SmolLM2-135M-Instruct in float32, in the user's cache.

        The first use on a machine fetches 93 MB from the package index and writes 540 MB; later ones read what is
        there, offline. Prints to stderr what takes time. Raises ``PluginError`` where the weights cannot be fetched,
        are not the published ones, or the folder cannot be written.
        """
        return _folder()


smollm2_135m = _Model()


def _make(folder: Path) -> None:
    began = time.monotonic()
    with weights(folder.parent, _say) as file:
        _say("smollm2-135m: converting the weights, once")
        from agentrl_smollm2.conversion import convert

        convert(file, folder)
    _say(f"smollm2-135m: ready after {time.monotonic() - began:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
