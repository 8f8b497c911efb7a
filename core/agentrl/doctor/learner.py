"""The learner: that the model loads where it is to be trained, and how it computes a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator

from agentrl.doctor.case import Case
from agentrl.doctor.findings import Finding, note, ok
from agentrl.learner.learner import Learner

__all__ = ["learner"]


def learner(case: Case) -> Iterator[Finding]:
    """Raises ``ConfigError`` for a model that does not load, or a device that is not there."""
    began = time.monotonic()
    case.learner = loaded = Learner(case.parts.model_folder, case.config.training, case.algorithm, case.config.seed)
    seconds = time.monotonic() - began
    device = str(loaded.model.device)
    where = f"loaded on {device} in {seconds:.1f} s"
    figures = {"device": device, "seconds": round(seconds, 3), "forest": loaded.rows_because is None}
    if loaded.rows_because is None:
        yield ok(f"{where}; it takes the forest: shared prefixes are computed once", **figures)
    else:
        yield note(f"{where}; {loaded.rows_because}", **figures)
