"""The hooks ``plugin-name``: code that takes part in every run."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from agentrl import hookimpl


class PluginNameHooks:
    """Counts how episodes end, and leaves the counts in the run folder."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    @hookimpl
    def agentrl_run_started(self) -> None:
        self.outcomes.clear()

    @hookimpl
    def agentrl_episode_finished(self, episode: Any) -> None:
        self.outcomes[episode.outcome] += 1

    @hookimpl
    def agentrl_run_finished(self, run: Any) -> None:
        counts = json.dumps(self.outcomes, indent=2)
        (run.folder / "plugin-name.json").write_text(counts + "\n")


hooks = PluginNameHooks()
