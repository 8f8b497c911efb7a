"""The tracker ``plugin-name``: where the numbers of a run go beside its folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

from agentrl.runs.contract import RunInfo
from pydantic import BaseModel, Field


class PluginNameTracker:
    """Writes the metrics to ``plugin-name.csv`` in the run folder, one a row."""

    class Settings(BaseModel):
        """The keys beside the name of the tracker."""

        every: int = Field(1, ge=1)
        """Steps between those that are written."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        self._file = (run.folder / "plugin-name.csv").open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["step", "metric", "value"])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step % self.settings.every == 0:
            self._rows.writerows([step, *metric] for metric in metrics.items())

    def finish(self, outcome: str) -> None:
        self._file.close()
