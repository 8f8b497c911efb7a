"""The ``tensorboard`` tracker writes files that TensorBoard reads."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agentrl.config.models import Config
from agentrl.errors import PluginError
from agentrl.plugins import Plugins
from agentrl.reporting.trackers import Trackers
from agentrl.runs.folder import RunFolder


def test_its_file_holds_the_metrics_the_config_and_the_outcome(tmp_path: Path) -> None:
    config = Config.model_validate({"run": {"dir": str(tmp_path)}, "trackers": ["tensorboard"]})
    folder = RunFolder.create(config)
    with Trackers.build(Plugins(), config.trackers, pytest.fail) as trackers:
        trackers.start(folder.info(config), config)
        trackers.log(0, {"evaluation/reward": 0.06})
        trackers.log(1, {"reward/mean": 0.25, "rollout/episodes": 64})
        trackers.log(2, {"reward/mean": 0.5, "policy/entropy": math.nan})
        trackers.finish("completed")
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("rollout/episodes")] == [(1, 64.0)]
    assert math.isnan(events.Scalars("policy/entropy")[0].value)
    (outcome,) = events.Tensors("outcome")
    assert outcome.tensor_proto.string_val == [b"completed"]
    (written,) = events.Tensors("config")
    assert f"learning_rate: {Config().training.learning_rate}".encode() in written.tensor_proto.string_val[0]


def test_steps_that_come_again_after_a_resume_take_the_place_of_those_before(tmp_path: Path) -> None:
    config = Config.model_validate({"run": {"dir": str(tmp_path)}, "trackers": ["tensorboard"]})
    folder = RunFolder.create(config)
    for resumed_from, steps in ((None, (1, 2, 3, 4)), (2, (3, 4, 5))):
        with Trackers.build(Plugins(), config.trackers, pytest.fail) as trackers:
            trackers.start(replace(folder.info(config), resumed_from=resumed_from), config)
            for step in steps:
                trackers.log(step, {"reward/mean": step + (resumed_from or 0)})
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 5.0),
        (4, 6.0),
        (5, 7.0),
    ]


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.delitem(sys.modules, name)
    config = Config.model_validate({"trackers": ["tensorboard"]})
    with pytest.raises(PluginError, match=r"pip install 'agentrl-core\[tensorboard\]'") as caught:
        Trackers.build(Plugins(), config.trackers, pytest.fail)
    assert caught.value.exit_code == 3
