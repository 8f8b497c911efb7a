"""``agentrl doctor`` as a user meets it: sections, a verdict, one JSON document, exit codes, and ways out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.warm import WarmInterpreter, WarmProcess

from agentrl.cli import main

SMALL = ("rollout.tasks_per_step=2", "rollout.group_size=4")
AGENTS = """
import asyncio
import time
from openai import AsyncOpenAI

async def talks(data, *, base_url, api_key, http_client):
    print("hello from the agent")
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": data["question"]}]
    await client.chat.completions.create(model="m", messages=messages)
    return 0.5

async def rejects(data, *, base_url, api_key, http_client):
    await talks(data, base_url=base_url, api_key=api_key, http_client=http_client)

async def silent(data):
    return 1.0

async def waits(data):
    print("here I am", flush=True)
    await asyncio.Event().wait()

async def sleeps(data):
    time.sleep(1000)

async def leaves_threads(data):
    await asyncio.to_thread(time.sleep, 1000)
"""
DEADLINE_S = 120

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with agents, which is the current one."""
    (tmp_path / "agents.py").write_text(AGENTS)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AGENTRL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTRL_ENVIRONMENTS", str(tmp_path / "environments"))
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``agentrl doctor`` here; returns its exit code, stdout and stderr."""

    def running(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    return running


@pytest.fixture
def start(folder: Path, warm: WarmInterpreter) -> Iterator[Callable[..., WarmProcess]]:
    """Starts ``agentrl doctor`` as a process, which ends with the test."""
    started: list[WarmProcess] = []

    def starting(*arguments: str) -> WarmProcess:
        pipe = subprocess.PIPE
        started.append(warm.start("doctor", *arguments, cwd=folder, stdout=pipe, stderr=pipe))
        return started[-1]

    yield starting
    for process in started:
        process.kill()
        process.communicate()


def test_it_says_section_by_section_that_all_is_well_and_how_to_train(run: Run, folder: Path) -> None:
    (folder / "config.yaml").write_text("rollout: {tasks_per_step: 2}\n")
    code, out, err = run("doctor", "math", "--config", "config.yaml", "rollout.group_size=4")
    assert code == 0, out
    headings = [line for line in out.splitlines() if not line.startswith(" ")]
    assert headings[:-1] == [
        "versions",
        "plugins",
        "model",
        "machine",
        "config",
        "learner",
        "engine",
        "agent",
        "group",
        "step",
    ]
    assert headings[-1] == "ready to train: agentrl train math rollout.group_size=4 --config config.yaml"
    assert "engine: starting the inference engine" in err
    assert "| user " in out
    assert "| model " in out
    assert not (folder / "runs").exists()


def test_without_an_agent_it_is_the_configs(run: Run) -> None:
    _, out, _ = run("doctor", *SMALL, "model=no-such-model")
    assert "  skipped  needs model" in out
    assert out.splitlines()[-1] == "1 problem"


@pytest.mark.parametrize("agent", ["talks", "rejects"])
def test_the_verdict_on_what_would_learn_nothing_says_so(run: Run, agent: str) -> None:
    code, out, _ = run("doctor", f"agents.py:{agent}", *SMALL)
    assert code == 0
    verdict = out.splitlines()[-1]
    assert verdict.startswith("would train, but has nothing to learn from, ")
    assert f": agentrl train agents.py:{agent} rollout.tasks_per_step=2" in verdict


def test_json_is_one_document_whatever_the_agent_prints(run: Run) -> None:
    code, out, err = run("doctor", "agents.py:talks", *SMALL, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["ready"], told["learns"]) == (True, False)
    assert (told["problems"], told["warnings"]) == (0, 1)
    assert told["command"].startswith("agentrl train agents.py:talks rollout.tasks_per_step=2")
    (group,) = [section for section in told["sections"] if section["name"] == "group"]
    (warning,) = [finding for finding in group["findings"] if finding["level"] == "warning"]
    assert warning["figures"]["reward_std"] == 0
    assert "hello from the agent" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["math", "model=no-such-model"], 2, "'no-such-model' is no bundled model"),
        (["mth"], 2, "did you mean 'math'?"),
        (["broken_agent.py:Agent"], 3, "no_such_framework"),
        (["agents.py:silent"], 1, "never used the endpoint"),
    ],
)
def test_the_exit_code_is_that_of_the_problem(
    run: Run, folder: Path, arguments: list[str], code: int, said: str
) -> None:
    (folder / "broken_agent.py").write_text("import no_such_framework\n")
    returned, out, _ = run("doctor", *arguments, *SMALL)
    assert returned == code
    assert said in out
    lines = out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("  problem  ")]
    assert lines[place + 1].startswith("           fix: ")
    assert lines[-1] == "1 problem"


def test_a_key_that_does_not_exist_is_an_error_of_usage(run: Run) -> None:
    code, out, err = run("doctor", "math", "rollout.group_sise=4")
    assert (code, out) == (2, "")
    assert "group_size" in err


def test_an_agent_that_blocks_the_process_is_left_with_what_is_known(
    start: Callable[..., WarmProcess],
) -> None:
    process = start("agents.py:sleeps", *SMALL, "rollout.episode_timeout=1", "--json")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, err
    sections = {section["name"]: section["findings"] for section in json.loads(out)["sections"]}
    (problem,) = [finding for finding in sections["agent"] if finding["level"] == "problem"]
    assert problem["text"].startswith("running one episode has not ended within 1 s at ")
    assert "in sleeps" in problem["text"]
    assert "rollout.mode=subproc" in problem["fix"]
    assert [finding["text"] for finding in sections["step"]] == ["needs agent to end"]


def test_threads_that_an_agent_leaves_do_not_keep_the_process(start: Callable[..., WarmProcess]) -> None:
    process = start("agents.py:leaves_threads", *SMALL, "rollout.episode_timeout=1")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, err
    assert "has left a blocking call running in a thread past the end of its episode" in out
    assert out.splitlines()[-1] == "1 problem, 1 warning"


def test_ctrl_c_ends_it_cleanly(start: Callable[..., WarmProcess]) -> None:
    process = start("agents.py:waits", *SMALL)
    assert process.stderr is not None
    for line in process.stderr:
        if line == "here I am\n":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    assert err.splitlines()[0].startswith("interrupted: ending what runs")
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert out.splitlines()[-1].startswith("  ok       logprobs differ")


WITHOUT_TORCH = """
import sys
for module in ("torch", "transformers", "renderers"):
    sys.modules[module] = None  # importing it raises as where it is not installed
from agentrl.cli import main
main(["doctor", "math"])
"""


def test_without_what_training_needs_it_says_what_can_be_said(folder: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 3, done.stderr
    assert "  problem  importing torch raised ModuleNotFoundError" in done.stdout
    assert "CPUs, " in done.stdout
    assert done.stdout.splitlines()[-1] == "1 problem"


def test_a_reader_that_goes_away_ends_it_quietly(start: Callable[..., WarmProcess]) -> None:
    process = start("math", *SMALL)
    assert process.stdout is not None
    assert process.stdout.readline() == "versions\n"
    process.stdout.close()
    assert process.wait(timeout=DEADLINE_S) == 1
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
