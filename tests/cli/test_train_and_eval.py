"""``agentrl train`` and ``agentrl eval`` as a user meets them: results, bad input, exit codes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.plugins.installing import install
from tests.warm import WarmInterpreter, WarmProcess

from agentrl.cli import main
from agentrl.cli.settings import split_arguments

SMALL = ("training.steps=2", "rollout.tasks_per_step=2", "rollout.group_size=4", "evaluation.tasks=12")
AGENTS = """
import asyncio
from openai import AsyncOpenAI

class Sync:
    def run(self, data):
        return 1.0

async def raises(data):
    raise LookupError("no such tool")

async def wordy(data, *, base_url, api_key, http_client):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": "1 + 1 is 2. " * 3000}]
    await client.chat.completions.create(model="m", messages=messages)
    return 1.0

async def stubborn(data):
    while True:
        try:
            await asyncio.Event().wait()
        except BaseException:
            pass

async def busy(data):
    while True:
        pass

class Answers:
    async def run(self, data, *, base_url, api_key, http_client):
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages = [{"role": "user", "content": data["question"]}]
        reply = await client.chat.completions.create(model="m", messages=messages)
        return reply.choices[0].message.content
"""


class Command:
    """``agentrl`` in an empty folder: here, or in a process of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], warm: WarmInterpreter) -> None:
        self.folder = folder
        self._capsys = capsys
        self._warm = warm
        self._started: list[WarmProcess] = []

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run it here; returns its exit code, stdout and stderr."""
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = self._capsys.readouterr()
        return left.value.code, captured.out, captured.err

    def start(self, *arguments: str) -> WarmProcess:
        """Start it as a process."""
        pipe = subprocess.PIPE
        self._started.append(self._warm.start(*arguments, cwd=self.folder, stdout=pipe, stderr=pipe))
        return self._started[-1]

    def end(self) -> None:
        """End what was started and still runs, as it does where a test has failed."""
        for process in self._started:
            process.kill()
            process.communicate()

    def refused(self, code: int, *arguments: str) -> str:
        """Run what must fail with ``code``; returns the one line that says why."""
        returned, out, err = self(*arguments)
        assert returned == code, err
        assert out == ""
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert err.splitlines()[-1] == line
        return line


@pytest.fixture
def agentrl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], warm: WarmInterpreter
) -> Iterator[Command]:
    (tmp_path / "agents.py").write_text(AGENTS)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AGENTRL_")]:
        monkeypatch.delenv(name)
    command = Command(tmp_path, capsys, warm)
    yield command
    command.end()


def test_train_says_what_was_learned_and_the_command_it_prints_measures_the_same(agentrl):
    code, out, err = agentrl("train", "math", *SMALL, "run.name=first")
    assert (code, "Traceback" in err) == (0, False)
    lines = out.splitlines()
    assert lines[0].startswith("completed after 2 steps")
    assert "before" in lines[1]
    assert "after" in lines[2]
    assert lines[3].startswith("ledger of 16 episodes: ")
    assert [line.partition(":")[0] for line in lines[4:6]] == ["time", "policy"]
    assert lines[6] == "checkpoint: runs/first/checkpoints/step-000002"
    program, *rest = lines[7].removeprefix("evaluate it: ").split()
    assert program == "agentrl"
    process = agentrl.start(*rest, "--json")
    measured = json.loads(process.communicate(timeout=120)[0])
    summary = json.loads((agentrl.folder / "runs/first/summary.json").read_text())
    assert (measured["reward"], measured["reward_greedy"]) == (summary["reward_after"], summary["reward_after_greedy"])
    again = json.loads(agentrl("eval", "runs/first", "--json")[1])
    assert (measured["folder"], again["folder"]) == ("runs/first-eval", "runs/first-eval-2")
    assert again == {**measured, "folder": again["folder"], "cost": again["cost"]}
    tokens = [each["cost"]["evaluation"]["policy"]["completion_tokens"] for each in (measured, again)]
    assert tokens[0] == tokens[1] > 0


@pytest.mark.parametrize("tasks", [None, "questions.csv"])
def test_an_agent_in_a_file_is_trained_and_the_banner_says_on_what(agentrl, tasks):
    (agentrl.folder / "questions.csv").write_text("question,answer\n" + "What is 3 + 4?,007\n" * 4)
    chosen = [f"tasks.train={tasks}"] if tasks else []
    code, out, err = agentrl("train", "agents.py:Answers", "reward=numeric-match", *SMALL, *chosen, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["outcome"] == "completed"
    held_out = "none" if tasks else "arithmetic-heldout"
    banner = f"training agents.py:Answers on tiny: tasks {tasks or 'arithmetic'}, held out {held_out}, "
    assert f"{banner}reward numeric-match; 2 steps of 8 episodes" in err
    assert ("agents.py:Answers is trained on arithmetic, {" in err) == (tasks is None)
    assert (summary["reward_before"] is None) == (tasks is not None)


def test_tracker_files_land_in_the_run_folder(agentrl):
    code, _, err = agentrl("train", "math", *SMALL, "run.name=tracked", "trackers=[tensorboard]")
    assert code == 0, err
    assert list((agentrl.folder / "runs/tracked").rglob("events.out.tfevents.*"))


def test_dry_run_shows_every_value_with_its_place_and_starts_nothing(agentrl, monkeypatch):
    (agentrl.folder / "config.yaml").write_text("rollout:\n  group_size: 4\n")
    monkeypatch.setenv("AGENTRL_TRAINING__STEPS", "7")
    code, out, _ = agentrl("train", "math", "-c", "config.yaml", "seed=3", "--dry-run")
    sources = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert code == 0
    assert sources["seed"] == ["3", "command", "line"]
    assert sources["training.steps"] == ["7", "environment", "AGENTRL_TRAINING__STEPS"]
    assert sources["rollout.group_size"][:3] == ["4", "file", "config.yaml:2"]
    assert sources["rollout.concurrency"][1] == "default"
    assert not (agentrl.folder / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rollout.temperature=0", "set rollout.temperature above 0"),
        ("rollout.override={stream: null}", "rollout.override.stream cannot be"),
        ("rollout.override={n: 0}", "with rollout.override.n every call would be refused"),
        ("rollout.override={temprature: 1.0}", "did you mean 'temperature'?"),
        ("rollout.override={temperature: hot}", "rollout.override.temperature='hot'"),
        ("rollout.override={top_p: 0.9}", "rollout.override.top_p=0.9"),
        ("algorithm=grpoo", "did you mean 'grpo'"),
        ("algorithm.objective=clop", "did you mean 'objective.clip'"),
        ("inference.backend=torhc", "did you mean 'torch'?"),
        ("inference.backend.nothing=1", "inference.backend.nothing"),
        ("trackers=[tensorbord]", "did you mean 'tensorboard'?"),
        ("gateway.normalise=[clocktimes]", "did you mean 'clock-times'?"),
        ("trackers=tensorboard", "write it as a list: [tensorboard]"),
        ("training.lora={rank: 65}", "training.lora.rank=65 is larger than model.layers.0."),
        ("training.lora.targets=[q_porj]", "did you mean 'q_proj'"),
        ("training.device=cuda:99", "training.device='cuda:99', but torch"),
        ("training.device=tpu", "training.device='tpu' is no device"),
        ("inference.backend.device=cuda:99", "inference.backend.device='cuda:99', but torch"),
        ("scheduler=rya", "there is no scheduler 'rya' (known: local; what is not registered is pkg.mod:Obj"),
        ("scheduler={type: local, nodes: 2}", "there is no key 'scheduler.nodes'"),
        ("tasks.train=jsonl", "tasks.train.path is missing: the file"),
        ("run.name=taken", "runs/taken exists already"),
    ],
)
def test_what_cannot_be_built_is_refused_before_there_is_a_folder_and_a_dry_run_shows_no_plan(agentrl, setting, said):
    (agentrl.folder / "runs/taken").mkdir(parents=True)
    for more in (["--dry-run"], []):
        code, out, err = agentrl("train", "math", setting, *more)
        assert (code, out) == (2, "")
        assert said in err
    assert [path.name for path in (agentrl.folder / "runs").iterdir()] == ["taken"]


SCHEDULERS = """
class Elsewhere:
    def __init__(self, config, nodes: int = 1):
        self.nodes = nodes

    def run(self, train):
        print(f"placed on {self.nodes} nodes")
        return train()
"""


@pytest.mark.parametrize(
    ("setting", "nodes"),
    [
        ("scheduler=elsewhere", 1),
        ("scheduler={type: agentrl-placing/elsewhere, nodes: 2}", 2),
        ("scheduler={type: 'schedulers.py:Elsewhere', nodes: 3}", 3),
    ],
)
def test_a_scheduler_is_named_and_places_the_run(agentrl, monkeypatch, setting, nodes):
    (agentrl.folder / "schedulers.py").write_text(SCHEDULERS)
    install(agentrl.folder, "agentrl-placing", {"agentrl.schedulers": {"elsewhere": "schedulers:Elsewhere"}})
    monkeypatch.syspath_prepend(agentrl.folder)
    monkeypatch.delitem(sys.modules, "schedulers", raising=False)
    code, out, err = agentrl("train", "math", "training.steps=0", "evaluation.tasks=1", setting)
    assert code == 0, err
    assert out.splitlines()[0] == f"placed on {nodes} nodes"


def test_no_command_is_printed_that_could_not_work(agentrl):
    code, out, _ = agentrl("train", "math", *SMALL[:3], "tasks.eval=null")
    assert code == 0
    assert "checkpoint: " in out
    assert "evaluate it" not in out


def test_dry_run_refuses_a_key_without_effect(agentrl):
    code, out, err = agentrl("train", "math", "tasks.eval=null", "evaluation.every=5", "--dry-run")
    assert (code, out) == (2, "")
    assert "evaluation.every (command line) has no effect: tasks.eval is null" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mth"], ["'mth'", "did you mean 'math'?"]),
        (["agentrl-core/mth"], ["'agentrl-core/mth'", "math"]),
        (["nowhere.py:Agent"], ["nowhere.py"]),
        (["agents.py:Answer"], ["'Answer'", "did you mean 'Answers'"]),
        (["agents.py:Sync"], ["not async", "rollout.mode=subproc"]),
        (["math", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["math", "rollout.group_sise=4"], ["rollout.group_sise", "group_size"]),
        (["math", "rollout.group_size=many"], ["rollout.group_size", "many", "integer"]),
        (["math", "rollout.group_size=0"], ["rollout.group_size", "0"]),
        (["math", "agent.kwargs.max_turn=3"], ["max_turn"]),
        (["math", "model=no-such-model"], ["no-such-model", "tiny"]),
        (["math", "tasks.train=nowhere.jsonl"], ["nowhere.jsonl"]),
        (["math", "tasks.train=arithmetik"], ["arithmetik", "did you mean 'arithmetic'"]),
        (["math", "tasks.train=broken.jsonl"], ["broken.jsonl:3"]),
        (["math", "model=untemplated"], ["untemplated", "chat template"]),
        (["math", "algorithm=grppo"], ["grppo", "grpo"]),
        (["math", "algorithm.objective.clip_hihg=0.3"], ["clip_hihg", "clip_high"]),
        (["math", "inference.backend=troch"], ["troch", "torch"]),
        (["math", "rollout.temperature=0"], ["rollout.temperature"]),
        (["math", "run.name=taken"], ["runs/taken", "run.name"]),
        (["math", "math"], ["'math'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in "".join(value) else None,
)
def test_bad_input_is_one_line_with_the_value_and_the_fix(agentrl, tiny_folder, arguments, said):
    (agentrl.folder / "broken.jsonl").write_text('{"question": "1+1", "answer": "2"}\n\n{"question": 1+1}\n')
    (agentrl.folder / "runs/taken").mkdir(parents=True)
    _without_template(tiny_folder, agentrl.folder / "untemplated")
    line = agentrl.refused(2, "train", *arguments)
    for words in said:
        assert words in line


def _without_template(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_an_agent_that_always_raises_ends_in_the_failure_budget(agentrl):
    line = agentrl.refused(1, "train", "agents.py:raises", *SMALL)
    for words in ("failed", "agent: LookupError: no such tool", "agents.py:", "rollout.failure_budget"):
        assert words in line


def test_a_prompt_longer_than_the_context_is_an_outcome_that_is_named(agentrl):
    code, out, err = agentrl("train", "agents.py:wordy", *SMALL)
    assert (code, "Traceback" in err) == (0, False)
    assert "8x context overflow: the messages of 36000 characters cannot fit in the context of 1024 tokens" in err
    assert "ledger of 16 episodes: 16 without tokens" in out


def test_a_run_folder_that_cannot_be_made_is_the_environments_fault(agentrl):
    line = agentrl.refused(3, "train", "math", "run.dir=/proc/runs")
    assert "/proc/runs" in line
    assert "run.dir" in line


def test_a_broken_plugin_is_the_environments_fault(agentrl):
    (agentrl.folder / "broken_agent.py").write_text("import no_such_framework\n")
    line = agentrl.refused(3, "train", "broken_agent.py:Agent")
    assert "no_such_framework" in line


@pytest.mark.parametrize("name", ["lr=1e-4", "null", "[best]", "./~x"])
def test_a_checkpoint_in_a_folder_of_any_name_is_measured(agentrl, tiny_folder, name):
    shutil.copytree(tiny_folder, agentrl.folder / name)
    code, out, err = agentrl("eval", name, "evaluation.tasks=1", "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == name


ABROAD = ["tasks.train={}.jsonl", "tasks.train={}.parquet", "tasks.train={}", "model.chat_template={}", "model={}"]


@pytest.mark.parametrize("setting", ABROAD)
def test_the_home_of_nobody_is_a_folder_that_is_not_there(agentrl, setting):
    assert "~nobody-of-this-name/x" in agentrl.refused(2, "train", "math", setting.format("~nobody-of-this-name/x"))


def test_runs_may_be_kept_and_interpreters_be_looked_for_where_a_tilde_is_nobodys_home(agentrl):
    assert agentrl("train", "math", "run.dir=~nobody-of-this-name", "--dry-run")[0] == 0
    assert "does not exist" in agentrl.refused(3, "train", "math", "agent.python=~nobody-of-this-name/x")


def test_the_printed_command_measures_a_run_whose_name_holds_an_equals_sign(agentrl):
    code, out, err = agentrl("train", "math", *SMALL[:3], "evaluation.tasks=1", "run.name=lr=1e-4", "training.steps=1")
    assert code == 0, err
    _, *arguments = shlex.split(out.splitlines()[-1].removeprefix("evaluate it: "))
    assert arguments == ["eval", "runs/lr=1e-4/checkpoints/step-000001"]
    assert agentrl(*arguments, "evaluation.tasks=1")[0] == 0


def test_a_path_that_holds_an_equals_sign_is_told_from_a_setting(agentrl):
    (agentrl.folder / "seed=1").mkdir()
    (agentrl.folder / "lr=1").mkdir()
    for path in ("./seed=1", "lr=1", "runs/lr=1e-4/checkpoints/step-000001", "/runs.1/a=b", "~/a=b"):
        assert split_arguments((path, "seed=2"), "model") == (path, ("seed=2",))
    for setting in ("seed=1", "sed=1", "lr=2", "agent.kwargs.a/b=1", "tasks.train=a/b=c.jsonl", "model=./x"):
        assert split_arguments(("name", setting), "model") == ("name", (setting,))


def test_an_agent_in_a_folder_with_an_equals_sign_is_trained(agentrl):
    (agentrl.folder / "a=b").mkdir()
    shutil.copy(agentrl.folder / "agents.py", agentrl.folder / "a=b/agents.py")
    code, _, err = agentrl("train", "a=b/agents.py:Answers", "reward=numeric-match", "--dry-run")
    assert code == 0, err


def test_eval_of_a_folder_that_is_no_model_says_so(agentrl):
    (agentrl.folder / "empty").mkdir()
    assert "config.json" in agentrl.refused(2, "eval", "./empty")


TELLS = """
from agentrl.inference.engine.backend import TorchBackend

class Tells(TorchBackend):
    def __init__(self, context):
        super().__init__(context)
        self.context = context

    async def start(self):
        self.context.say(f"loading the weights, {self.context.timeout:g} s at most")
        return await super().start()
"""


def test_eval_tells_what_a_long_start_waits_for_and_the_backend_how_long_it_may_take(agentrl):
    (agentrl.folder / "backends.py").write_text(TELLS)
    settings = ("evaluation.tasks=2", "inference.backend=backends.py:Tells", "inference.timeout=77")
    code, _, err = agentrl("eval", "tiny", "agent=math", *settings)
    assert code == 0, err
    assert "note: loading the weights, 77 s at most" in err


def test_eval_says_which_settings_it_does_not_read(agentrl):
    code, _, err = agentrl("eval", "tiny", "evaluation.tasks=4", "training.steps=5")
    assert code == 0
    assert "warning: training.steps (command line) has no effect: evaluation does not train" in err
    assert "evaluation.tasks" not in err


def test_ctrl_c_saves_what_was_learned(agentrl):
    process = agentrl.start("train", "math", *SMALL, "training.steps=10000", "tasks.eval=null", "run.name=cut")
    metrics = agentrl.folder / "runs/cut/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    summary = json.loads((agentrl.folder / "runs/cut/summary.json").read_text())
    assert summary["outcome"] == "interrupted"
    assert summary["steps"] > 2
    assert out.splitlines()[0].startswith("interrupted after")
    assert (agentrl.folder / summary["checkpoint"] / "model.safetensors").exists()
    assert "Traceback" not in err


@pytest.mark.parametrize("agent", ["stubborn", "busy"])
def test_a_second_ctrl_c_ends_it_at_once_whatever_an_agent_does(agentrl, agent):
    process = agentrl.start("train", f"agents.py:{agent}", "tasks.eval=null", "run.name=stuck")
    log = agentrl.folder / "runs/stuck/logs/run.log"
    while process.poll() is None and not (log.exists() and "training agents.py" in log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not (agentrl.folder / "runs/stuck/summary.json").exists()
