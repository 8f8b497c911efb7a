"""Presets raise the held-out reward of ``tiny``, also where episodes are older; ``make acceptance`` has them all."""

from __future__ import annotations

import io

import pytest

from agentrl import Trainer, load_config
from agentrl.reporting.plain import PlainReporter

STEPS = 10
"""And as many more as episodes may be old in."""
RISE = 0.1
PRESETS = [
    ("grpo", 4),
    pytest.param("dapo", 0, marks=pytest.mark.long),
    pytest.param("gspo", 2, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("preset", "staleness"), PRESETS, ids=str)
def test_a_preset_learns(preset, staleness, tmp_path):
    config = load_config(
        None,
        f"algorithm={preset}",
        f"rollout.max_staleness={staleness}",
        f"training.steps={STEPS + staleness}",
        "evaluation.every=0",
        "evaluation.tasks=64",
        f"run.dir={tmp_path}",
        environ={},
    )
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        summary = trainer.train("math")
    assert summary.reward_before is not None
    assert summary.reward_after is not None
    assert summary.reward_after > summary.reward_before + RISE
