"""Starting workers: each way in which an interpreter or an agent cannot be used is told before the first episode."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.rollout.batches import in_time, process_of

from agentrl.environ import ENVIRONMENTS, WORKER
from agentrl.environments.environment import Manifest, write_manifest
from agentrl.errors import ConfigError, PluginError, RunError
from agentrl.rollout.contract import AgentFacts
from agentrl.rollout.subproc.executor import inspect_agent
from agentrl.rollout.subproc.process import WorkerLimits, WorkerProcess

TRIVIAL = "async def agent(data): return 1.0\n"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """The interpreter of an environment in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def refusal(batches):
    """What entering a runner raises; no process is left then (see ``batches``)."""

    def enter(process, **options):
        async def main():
            async with batches.runner(process, **options):
                raise AssertionError("it started")

        with pytest.raises((ConfigError, PluginError)) as caught:
            asyncio.run(in_time(main()))
        return caught.value

    return enter


def fake_core(folder: Path, worker: str | None) -> str:
    """A package called agentrl that goes before the real one; returns the entry of agent.env that does it."""
    package = folder / "fake" / "agentrl"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    if worker is not None:
        (package / "worker.py").write_text(worker)
    return f"PYTHONPATH={package.parent}"


SPEAKS_OTHERWISE = """
import json, socket, sys
rollout = socket.socket(fileno=int(sys.argv[2])).makefile("rwb")
rollout.readline()
rollout.write(json.dumps({"type": "hello", "protocol": 99, "core": "9.9.0", "python": "3.99"}).encode() + b"\\n")
rollout.flush()
rollout.readline()
"""

INSTALL = r"-m pip install (--force-reinstall \S+|'agentrl-core==[\w.]+')"
"""Core again, from the folder or the index that it came from here."""


def test_an_interpreter_that_does_not_exist(agent_file, refusal):
    error = refusal(process_of(agent_file(TRIVIAL), python=Path("/no/such/python")))
    assert str(error).startswith("agent.python=/no/such/python does not exist")
    named = refusal(process_of(agent_file(TRIVIAL), python=Path("sh")))
    assert re.search(r"agent.python=sh does not exist \(set agent.python=/.*/sh\)", str(named))


def test_a_name_that_may_be_meant_for_an_environment(agent_file, refusal, tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENTS, str(tmp_path / "environments"))
    alone = refusal(process_of(agent_file(TRIVIAL), python=Path("camell")))
    assert "to an environment that agentrl env create makes" in str(alone)
    (folder := tmp_path / "environments" / "camel").mkdir(parents=True)
    write_manifest(folder, Manifest("3.11", None, (), editable=False, created="2026-11-24T12:00:00"))
    beside = refusal(process_of(agent_file(TRIVIAL), python=Path("camell")))
    assert "agent.python=camell does not exist (environments: did you mean 'camel'?" in str(beside)


def test_a_folder_instead_of_an_interpreter(agent_file, refusal, bare_python):
    error = refusal(process_of(agent_file(TRIVIAL), python=bare_python.parent.parent))
    assert "is a folder" in str(error)
    assert f"set agent.python={bare_python}" in str(error)


def test_a_file_that_cannot_be_run(agent_file, refusal, tmp_path):
    plain = tmp_path / "python"
    plain.write_text("hello")
    assert "is not executable" in str(refusal(process_of(agent_file(TRIVIAL), python=plain)))
    plain.chmod(0o755)
    assert "could not be started: Exec format error" in str(refusal(process_of(agent_file(TRIVIAL), python=plain)))


def test_a_program_that_is_no_python(agent_file, refusal):
    error = refusal(process_of(agent_file(TRIVIAL), python=Path("/bin/true")))
    assert "/bin/true is no Python interpreter: it ended with exit code 0" in str(error)


def test_an_interpreter_without_agentrl(agent_file, refusal, bare_python):
    error = refusal(process_of(agent_file(TRIVIAL), python=bare_python))
    assert re.search(rf"{bare_python} has no agentrl-core \({bare_python} {INSTALL}\)", str(error))


def test_the_fix_for_an_environment_of_agentrls_own_is_to_make_it_anew(agent_file, refusal, tmp_path, monkeypatch):
    folder = tmp_path / "environments" / "camel"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    write_manifest(folder, Manifest("3.11", None, (), editable=False, created="2026-11-24T12:00:00"))
    monkeypatch.setenv(ENVIRONMENTS, str(folder.parent))
    error = refusal(process_of(agent_file(TRIVIAL), python=folder / "bin" / "python"))
    assert str(error).endswith("has no agentrl-core (agentrl env create camel --replace)")


def test_an_agentrl_that_cannot_run_agents_yet(agent_file, refusal, tmp_path, bare_python):
    error = refusal(process_of(agent_file(TRIVIAL), python=bare_python, env=[fake_core(tmp_path, None)]))
    assert "too old to run agents" in str(error)
    assert re.search(rf"{bare_python} {INSTALL}", str(error))


def test_a_worker_of_another_version(agent_file, refusal, tmp_path):
    error = refusal(process_of(agent_file(TRIVIAL), env=[fake_core(tmp_path, SPEAKS_OTHERWISE)]))
    assert "agentrl-core 9.9.0, whose worker speaks protocol 99" in str(error)
    assert re.search(rf"here speaks \d+ \(.* {INSTALL}", str(error))


def test_an_agent_that_does_not_import(agent_file, refusal):
    error = refusal(agent_file("import no_such_framework\n"))
    assert isinstance(error, PluginError)
    assert "no_such_framework" in str(error)


def test_an_agent_that_ends_its_process_when_it_is_imported(agent_file, refusal):
    error = refusal(agent_file("import os\nprint('GPU driver missing', flush=True)\nos._exit(4)\n"))
    assert "ended with exit code 4" in str(error)
    assert "GPU driver missing" in str(error)


def test_a_name_and_a_key_that_do_not_exist_are_the_configs(agent_file, refusal):
    assert isinstance(refusal(process_of("no-such-agent")), ConfigError)
    assert "takes no 'colour'" in str(refusal(process_of(agent_file(TRIVIAL), colour="red")))
    assert "agent.kwargs['when'], a set" in str(refusal(process_of(agent_file(TRIVIAL), when={1})))


def test_an_agent_that_never_finishes_its_import(agent_file, refusal):
    reference = agent_file("import time\nprint('downloading')\ntime.sleep(60)\n")
    error = refusal(process_of(reference), limits=WorkerLimits(start_s=2.0))
    assert "was not ready within 2 s" in str(error)
    assert "downloading" in str(error)


def test_an_agent_that_floods_when_it_is_imported(agent_file, refusal):
    error = refusal(agent_file("while True: print('x' * 4000)\n"), limits=WorkerLimits(printed=2**20))
    assert "printed more than 1 MiB" in str(error)


def wait_for_child(folder: Path) -> None:
    while not any(folder.glob("child.*")):
        time.sleep(0.05)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("entered", [False, True], ids=["entering", "leaving"])
def test_however_often_it_is_cancelled_no_process_is_left(agent_file, batches, tmp_path, entered, times):
    """Neither the agent's, nor one that it has started in a session of its own."""
    stays = "" if entered else "time.sleep(60)\n"
    reference = agent_file(
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        f"pathlib.Path({str(tmp_path)!r}, f'child.{{child.pid}}').touch()\n{stays}"
        "def agent(data): return 1.0\n"
    )

    async def main():
        runner = batches.runner(reference)
        if entered:
            await runner.__aenter__()
        running = asyncio.create_task(runner.__aexit__(None, None, None) if entered else runner.__aenter__())
        await asyncio.to_thread(wait_for_child, tmp_path)
        for _ in range(times):
            await asyncio.sleep(0)
            running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(in_time(main()))


def test_workers_that_are_being_ended_when_the_run_is_leave_nothing(agent_file, batches, monkeypatch):
    """Stopping a run may come while a worker that has not loaded its agent is on its way out."""
    ends_within = WorkerProcess.ends_within

    async def interrupted(self, seconds):
        asyncio.current_task().cancel()
        return await ends_within(self, seconds)

    monkeypatch.setattr(WorkerProcess, "ends_within", interrupted)

    async def main():
        with pytest.raises(asyncio.CancelledError):
            async with batches.runner(agent_file("raise ImportError('no licence')\n")):
                raise AssertionError("it started")

    asyncio.run(in_time(main()))


def test_looking_at_an_agent_starts_and_ends_a_process(agent_file, batches):
    reference = agent_file("class agent:\n    def run(self, data): return 1.0\n")
    facts = asyncio.run(in_time(inspect_agent(process_of(reference), deadline_s=30)))
    assert facts == AgentFacts(is_async=False, returns_answer=False)
    with pytest.raises(PluginError, match="nothing_here"):
        asyncio.run(in_time(inspect_agent(process_of(agent_file("import nothing_here\n")), deadline_s=30)))


def test_workers_that_can_no_longer_be_started_end_the_episodes_with_the_reason(agent_file, batches, tmp_path):
    reference = agent_file(
        "import os, pathlib\n"
        f"once = pathlib.Path({str(tmp_path / 'once')!r})\n"
        "if once.exists(): raise ImportError('the licence has expired')\n"
        "once.touch()\n"
        "async def agent(data): os._exit(1)\n"
    )
    with pytest.raises(RunError, match=r"commonest: .*plugin: .*the licence has expired"):
        batches.run(reference, [{}, {}])


def test_workers_that_are_alive_go_on_where_no_more_can_be_started(agent_file, batches, tmp_path):
    reference = agent_file(
        "import os, pathlib, time\n"
        f"once = pathlib.Path({str(tmp_path / 'once')!r})\n"
        "if once.exists(): raise ImportError('out of licences')\n"
        "once.touch()\n"
        "def agent(data):\n    time.sleep(0.3)\n    return 1.0\n"
    )
    episodes = batches.run(reference, [{}] * 12)
    assert [episode.reward for episode in episodes] == [1.0] * 12
    assert any("goes on with 1 workers" in warning and "out of licences" in warning for warning in batches.warnings)


def test_a_process_is_known_by_a_mark_that_its_children_inherit(agent_file, batches):
    reference = agent_file(f"import os\ndef agent(data): return float(bool(os.environ[{WORKER!r}]))\n")
    assert [episode.reward for episode in batches.run(reference, [{}])] == [1.0]
