"""What the config wants of sampling is refused, before any episode, where the backend cannot do it."""

from __future__ import annotations

import io

import pytest

from agentrl import Trainer, load_config
from agentrl.errors import ConfigError
from agentrl.inference.contract import Capabilities
from agentrl.reporting.plain import PlainReporter
from agentrl.training.parts import check_sampling

NARROW = Capabilities(512, 8, temperatures=(0.01, 2.0), sampling=frozenset({"temperature", "seed"}))
PLAIN = Capabilities(512, 8, sampling=frozenset())
TOP_P = "rollout.override={top_p: 0.9}"
BACKEND = """
from dataclasses import replace
from agentrl.inference.engine.backend import TorchBackend

class Narrow(TorchBackend):
    async def start(self):
        return replace(await super().start(), temperatures=(0.01, 2.0), sampling=frozenset({"temperature", "seed"}))

    async def generate(self, request):
        raise AssertionError("an episode was run")
        yield
"""


@pytest.mark.parametrize(
    ("setting", "capabilities", "trains", "says"),
    [
        ("rollout.temperature=0.005", NARROW, True, r"rollout\.temperature=0\.005.*samples at 0, and from 0\.01 to 2"),
        ("rollout.temperature=3", NARROW, True, r"rollout\.temperature=3\.0 and inference\.backend='torch'"),
        ("evaluation.temperature=3", NARROW, True, r"evaluation\.temperature=3.*change evaluation\.temperature"),
        ("evaluation.temperature=3", NARROW, False, r"evaluation\.temperature=3"),
        ("rollout.override={temperature: 2.5}", NARROW, False, r"rollout\.override\.temperature=2\.5"),
        ("rollout.temperature=0.9", PLAIN, True, r"rollout\.temperature=0\.9.*samples at 0 and 1"),
        (TOP_P, NARROW, False, r"rollout\.override\.top_p=0\.9.*is not supported by the inference backend"),
        (TOP_P, NARROW, True, r"rollout\.override\.top_p=0\.9.*which training cannot account for"),
        ("rollout.override={top_k: 5}", NARROW, False, r"rollout\.override\.top_k=5"),
        ("rollout.override={stop: [x]}", NARROW, True, r"rollout\.override\.stop=\['x'\]"),
        ("rollout.override={seed: 1}", PLAIN, True, r"rollout\.override\.seed=1"),
        ("rollout.override={logprobs: true, top_logprobs: 2}", NARROW, True, r"rollout\.override\.top_logprobs=2"),
        ("rollout.override={min_p: 0.1}", Capabilities(512, 8), False, r"rollout\.override\.min_p=0\.1"),
        ("rollout.override={max_completion_tokens: many}", NARROW, False, r"override\.max_completion_tokens='many'"),
    ],
)
def test_a_setting_that_the_backend_does_not_honour_is_refused_by_its_key(setting, capabilities, trains, says):
    with pytest.raises(ConfigError, match=says):
        check_sampling(load_config(None, setting, environ={}), capabilities, trains=trains)


@pytest.mark.parametrize(
    ("settings", "capabilities", "trains"),
    [
        ((), PLAIN, True),
        (("rollout.temperature=2", "evaluation.temperature=0.01"), NARROW, True),
        (("evaluation.temperature=0",), NARROW, True),
        (("rollout.temperature=3",), NARROW, False),
        (("evaluation.temperature=3", "tasks.eval=null"), NARROW, True),
        (("rollout.temperature=3", "rollout.override={temperature: 1.0, top_p: null}"), NARROW, True),
        (("rollout.override={top_p: 1, stop: null}",), NARROW, True),
        ((TOP_P,), Capabilities(512, 8), False),
    ],
)
def test_a_setting_that_it_honours_or_that_nothing_reads_is_not(settings, capabilities, trains):
    check_sampling(load_config(None, *settings, environ={}), capabilities, trains=trains)


def test_training_and_evaluation_are_refused_before_any_episode(tmp_path, tiny_folder):
    (tmp_path / "narrow.py").write_text(BACKEND)
    backend = f"inference.backend={tmp_path / 'narrow.py'}:Narrow"
    settings = (f"run.dir={tmp_path}", "run.name=run", backend, "evaluation.temperature=0.005")
    config = load_config(None, *settings, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        with pytest.raises(ConfigError, match=r"evaluation\.temperature=0\.005"):
            trainer.train("math")
        with pytest.raises(ConfigError, match=r"evaluation\.temperature=0\.005"):
            trainer.evaluate(tiny_folder, agent="math")
