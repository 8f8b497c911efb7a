"""What an installed plugin hears of a whole run, and what becomes of the run when it raises."""

from __future__ import annotations

import io
import json

import pytest
from tests.plugins.conftest import site  # noqa: F401 - a fixture
from tests.plugins.installing import install

from agentrl import Trainer, load_config
from agentrl.errors import PluginError
from agentrl.reporting.plain import PlainReporter

LISTENER = """
from agentrl import hookimpl
heard = []

@hookimpl
def agentrl_configure(config): heard.append("configure")
@hookimpl
def agentrl_run_started(run): heard.append(f"started {run.name}")
@hookimpl
def agentrl_episode_finished(episode): heard.append("episode")
@hookimpl
def agentrl_batch_ready(batch): heard.append(f"batch of {len(batch)}")
@hookimpl
def agentrl_step_finished(step, metrics): heard.append(f"step {step}")
@hookimpl
def agentrl_evaluation_finished(step, metrics):
    heard.append(f"evaluation {step} of {metrics['evaluation/episodes']}")
@hookimpl
def agentrl_checkpoint_saved(path): heard.append(path.name)
@hookimpl
def agentrl_run_finished(run, outcome): heard.append(outcome)
"""
SMALL = ("training.steps=1", "tasks.eval=null", "rollout.tasks_per_step=2", "rollout.group_size=2", "run.name=run")


def train(tmp_path, *settings, told=None):
    config = load_config(None, f"run.dir={tmp_path}", *SMALL, *settings, environ={})
    with Trainer(config, reporter=PlainReporter(told or io.StringIO())) as trainer:
        return trainer.train("math")


def listen(folder, text):
    install(
        folder, "agentrl-listener", {"agentrl.plugins": {"listener": "listener_mod"}}, files={"listener_mod.py": text}
    )


def test_hooks_hear_of_a_run_in_order(site, tmp_path):  # noqa: F811
    listen(site, LISTENER)
    train(tmp_path)
    import listener_mod

    assert listener_mod.heard == [
        *("configure", "started run"),
        *["episode"] * 4,
        *("batch of 2", "step 1", "step-000001", "completed"),
    ]


EVALUATED = ("tasks.eval=arithmetic-heldout", "evaluation.tasks=2", "evaluation.every=1")


def test_evaluations_are_heard_of_in_their_place_with_what_is_logged_of_them(site, tmp_path):  # noqa: F811
    listen(site, LISTENER)
    train(tmp_path, *EVALUATED)
    import listener_mod

    assert listener_mod.heard == [
        *("configure", "started run"),
        *["episode"] * 4,
        "evaluation 0 of 4",
        *["episode"] * 4,
        *("batch of 2", "step 1"),
        *["episode"] * 4,
        "evaluation 1 of 4",
        *("step-000001", "completed"),
    ]


def test_a_hook_of_evaluations_that_raises_ends_the_run_with_its_name(site, tmp_path):  # noqa: F811
    listen(site, "from agentrl import hookimpl\n@hookimpl\ndef agentrl_evaluation_finished(step): 1 / 0\n")
    with pytest.raises(PluginError, match=r"listener.*ZeroDivisionError.*agentrl_evaluation_finished.*-p no:"):
        train(tmp_path, *EVALUATED)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "ZeroDivisionError" in summary["outcome"]
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "evaluation/reward" in line


def test_a_hook_that_raises_ends_the_run_with_its_name_and_what_was_learned_saved(site, tmp_path):  # noqa: F811
    listen(site, LISTENER.replace('heard.append(f"step {step}")', "1 / 0"))
    with pytest.raises(PluginError, match=r"listener.*ZeroDivisionError.*agentrl_step_finished.*-p no:"):
        train(tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "ZeroDivisionError" in summary["outcome"]
    assert summary["checkpoint"].endswith("step-000001")


HUNG = """
import threading
end = threading.Event()
"""


@pytest.mark.parametrize(
    "hook", ["run_started", "episode_finished", "step_finished", "evaluation_finished", "run_finished"]
)
def test_a_hook_that_hangs_is_given_up_with_its_name_and_the_run_goes_on(site, tmp_path, hook):  # noqa: F811
    hung = f"@hookimpl\ndef agentrl_{hook}(): end.wait(30)\n"
    listen(site, HUNG + "from agentrl import hookimpl\n" + hung)
    told = io.StringIO()
    try:
        evaluated = EVALUATED if hook == "evaluation_finished" else ()
        assert train(tmp_path, *evaluated, "run.hook_timeout=0.2", told=told).outcome == "completed"
    finally:
        import listener_mod

        listener_mod.end.set()
    assert "plugin 'agentrl-listener/listener' " in told.getvalue()
    assert "is called no more in this run" in told.getvalue()
    assert "-p no:agentrl-listener/listener" in told.getvalue()


TRACKER = """
import threading
end = threading.Event()

class Hung:
    def start(self, run, config): ...
    def log(self, step, metrics): end.wait(30)
    def finish(self, outcome): raise AssertionError("not called any more")
"""


def test_a_tracker_that_hangs_is_left_out_and_the_run_goes_on(site, tmp_path):  # noqa: F811
    install(site, "agentrl-hung", {"agentrl.trackers": {"hung": "hung_mod:Hung"}}, files={"hung_mod.py": TRACKER})
    told = io.StringIO()
    try:
        assert train(tmp_path, "trackers=[hung]", "run.hook_timeout=0.2", told=told).outcome == "completed"
    finally:
        import hung_mod

        hung_mod.end.set()
    assert "tracker 'hung' " in told.getvalue()
    assert "is off for the rest of the run" in told.getvalue()


def test_a_plugin_that_does_not_load_takes_no_part_and_is_named(site, tmp_path):  # noqa: F811
    listen(site, "import no_such_framework\n")
    said = io.StringIO()
    config = load_config(None, f"run.dir={tmp_path}", *SMALL, environ={})
    with Trainer(config, reporter=PlainReporter(said)) as trainer:
        assert trainer.train("math").outcome == "completed"
    assert "takes no part in this run: " in said.getvalue()
    assert "no_such_framework" in said.getvalue()
