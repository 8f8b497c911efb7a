"""The example of two terminals: a run that serves and learns, as a process, and the people who use it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from tests.warm import WarmInterpreter

from agentrl import Trainer
from agentrl.errors import ConfigError
from agentrl.runs.reader import Run, open_run

EXAMPLE = Path(__file__).parents[1] / "examples" / "online"
STEP = ("rollout.tasks_per_step=1", "rollout.group_size=8", "training.steps=1000", "run.name=assistant")


@pytest.fixture(scope="module")
def users() -> ModuleType:
    spec = spec_from_file_location("users", EXAMPLE / "users.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(narration: Path, after: str) -> str:
    """The word that follows ``after`` in what the process says, once it is there."""
    ends = time.monotonic() + 120
    while after not in (text := narration.read_text()):
        assert time.monotonic() < ends, text
        time.sleep(0.05)
    while "\n" not in (said := narration.read_text().partition(after)[2]):
        time.sleep(0.05)
    return said.split()[0]


def test_people_use_what_a_process_serves_and_it_learns_until_it_is_told_to_end(
    tmp_path: Path, warm: WarmInterpreter, users: ModuleType
) -> None:
    narration = tmp_path / "stderr"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AGENTRL_")}
    with narration.open("w") as stderr:
        command = ("train", "online", "serve.port=0", *STEP)
        process = warm.start(*command, cwd=tmp_path, environ=environ, stdout=subprocess.PIPE, stderr=stderr)
    try:
        url, key = told(narration, " is served at "), told(narration, "admin key, shown once: ")
        rewards = asyncio.run(users.use(url, key, people=4, sessions=20, say=10))
        ends = time.monotonic() + 120
        while len((run := open_run(tmp_path / "runs" / "assistant")).steps()) < 2:
            assert time.monotonic() < ends, narration.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, narration.read_text()
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()
    summary = run.summary
    assert summary is not None
    assert (summary.outcome, summary.steps, summary.episodes) == ("interrupted", 2, 20)
    assert sorted(each.reward for each in run.load_episodes()) == sorted(rewards)
    assert run.newest_checkpoint() is not None
    assert f"go on with: agentrl train online model={Path('runs/assistant')}" in narration.read_text()
    assert key.encode() not in b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert_not_resumed(run)


def assert_not_resumed(run: Run) -> None:
    with Trainer.resume(run.path) as trainer, pytest.raises(ConfigError, match="cannot be resumed") as refused:
        trainer.train()
    assert f"agentrl train online model={run.path}" in str(refused.value.fix)


def test_the_people_of_the_example_like_what_is_right_and_short(users: ModuleType) -> None:
    assert [users.liked(answer, 46) for answer in ("46", "It is 46.", "45", "46 or 47", "")] == [
        1.0,
        1.0,
        0.0,
        0.0,
        0.0,
    ]
    assert users.liked("After thinking for long, it is 46.", 46) == 0.5


def test_the_page_of_the_example_has_its_commands() -> None:
    page = (EXAMPLE / "README.md").read_text()
    assert "agentrl train online" in page
    assert "python examples/online/users.py" in page


def test_people_who_find_no_service_say_so_in_one_line(monkeypatch: pytest.MonkeyPatch, users: ModuleType) -> None:
    monkeypatch.setenv("AGENTRL_ADMIN_KEY", "key")
    with socket.socket() as nobody:  # Bound and not listening, so that every connection is refused.
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr("sys.argv", ["users.py", "--url", url, "--people", "2"])
        with pytest.raises(SystemExit) as ended:
            users.main()
    assert str(ended.value).startswith(f"users.py: the service at {url} is not there, has ended or refuses: ")
    assert "\n" not in str(ended.value)
