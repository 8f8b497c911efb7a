"""Whole training runs of the model tiny, and what they leave."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agentrl import Trainer, load_config, open_run
from agentrl.config.models import Config
from agentrl.errors import AgentRLError
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder, read_summary

VLLM = "agentrl_vllm.backend:VllmBackend"

RATIO_WITHIN = 1e-3
KL_BELOW = 1e-4
"""How far the servers' logprobs may be from the learner's, in a step's mean."""


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    folder: RunFolder
    summary: Summary
    error: AgentRLError | None
    """What stopped it."""
    said: str
    """All that whoever watched it was told."""
    config: Config
    episodes: Sequence[Episode] = field(default_factory=list)
    """Those that it trained on."""

    @property
    def once_each(self) -> bool:
        """Whether every sample of every group that was rolled out is in the store once, and rewarded."""
        rollout = self.config.rollout
        keys = Counter(episode.key for episode in self.episodes)
        by_group = Counter(key.group for key in keys)
        whole = set(by_group.values()) == {rollout.group_size} and len(by_group) % rollout.tasks_per_step == 0
        groups = list(range(len(by_group)))
        rewarded = all(episode.outcome == "rewarded" for episode in self.episodes)
        return whole and rewarded and sorted(by_group) == groups and set(keys.values()) == {1}

    @property
    def exact(self) -> bool:
        """Whether in each step the servers' logprobs were the learner's, and all tokens of its newest version."""
        lines = [line.metrics for line in open_run(self.folder.path).metrics()]
        rows = [row for row in lines if "policy/ratio_mean" in row]
        close = all(
            abs(row["policy/ratio_mean"] - 1) <= RATIO_WITHIN and row["policy/mismatch_kl"] < KL_BELOW for row in rows
        )
        return len(rows) == self.summary.steps and close and all(map(_is_newest, self.episodes))


def run(folder: Path, agent: Any, backend: Mapping[str, Any], *settings: str) -> Run:
    """Train ``agent`` into ``folder``; what stops the run is in what this returns."""
    config = configured(backend, f"run.dir={folder.parent}", f"run.name={folder.name}", *settings)
    told = io.StringIO()
    error = None
    with Trainer(config, reporter=PlainReporter(told)) as trainer:
        try:
            trainer.train(agent)
        except AgentRLError as stopped:
            error = stopped
    left = RunFolder(folder)
    episodes = list(open_run(folder).load_episodes(phase="train")) if left.episodes.exists() else []
    return Run(left, read_summary(left.summary), error, told.getvalue(), config, episodes)


def configured(backend: Mapping[str, Any], *settings: str) -> Config:
    """The defaults with ``backend`` and ``settings``."""
    return load_config(None, f"inference.backend={json.dumps(backend)}", *settings, environ={})


def untrained_model(like: Path, folder: Path, *, layers: int, **sizes: int) -> Path:
    """A model of the same tokens that knows nothing: it says one as soon as another, and seldom ends.

    ``sizes`` are keys of its config.
    """
    config: Any = AutoConfig.from_pretrained(like)
    config.update({**sizes, "num_hidden_layers": layers})
    config.layer_types = ["full_attention"] * layers
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def _is_newest(episode: Episode) -> bool:
    versions = {version for span in episode.tree.spans if span.sampled for version in span.sampled.versions}
    return versions == {episode.version}
