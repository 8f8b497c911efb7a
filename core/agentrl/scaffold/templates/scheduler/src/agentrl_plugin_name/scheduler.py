"""The scheduler ``plugin-name``: where a run is placed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, Field

Summary = TypeVar("Summary")


class PluginNameScheduler:
    """This process, behind whatever else the machine has to do."""

    class Settings(BaseModel):
        """The keys beside the type of the scheduler."""

        niceness: int = Field(10, ge=0, le=19)
        """How far others go first, as the command ``nice`` has it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def run(self, train: Callable[[], Summary]) -> Summary:
        os.nice(self.settings.niceness)
        return train()
