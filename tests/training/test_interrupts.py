"""Ctrl-C, SIGTERM and SIGHUP, wherever they find a run: interrupted, saved, and said at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import pty
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from agentrl import Trainer, load_config, open_run
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.folder import RunFolder
from agentrl.training import checkpointer, interrupts

BRIEF = (
    *("rollout.tasks_per_step=2", "rollout.group_size=2", "evaluation.tasks=4"),
    *("evaluation.every=0", "training.checkpoint_every=1", "training.steps=3"),
)
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(number=signal.SIGINT, *, after=0.0):
    """Have this process sent a signal."""
    timer = threading.Timer(after, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


class Told(PlainReporter):
    """Remembers what was said, and does something as an activity begins."""

    def __init__(self):
        super().__init__(io.StringIO())
        self.notes, self.acts = [], {}

    def activity_started(self, name, episodes=None):
        self.acts.pop(name, lambda: None)()

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine may take long to come back to an event loop, and the process of these tests is not to be left."""
    monkeypatch.setattr(interrupts, "_PATIENCE_S", 600.0)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def trainer(tmp_path, told):
    def trainer(*settings):
        config = load_config(
            None, f"run.dir={tmp_path}", "run.name=run", "agent.name=math", *BRIEF, *settings, environ={}
        )
        return Trainer(config, reporter=told)

    return trainer


@pytest.fixture
def interrupted(trainer, tmp_path, told):
    """Train, and see that the run was interrupted and what it had learned is saved; returns the summary."""

    def interrupted(agent=None, *settings, run=lambda train: train()):
        with trainer("tasks.eval=null", *settings) as training:
            summary = run(lambda: training.train(agent))
        assert summary.outcome == "interrupted"
        folder = RunFolder(tmp_path / "run")
        assert json.loads(folder.summary.read_text()) == summary.to_json()
        if summary.steps:
            assert summary.checkpoint == str(folder.checkpoint(summary.steps))
            AutoModelForCausalLM.from_pretrained(summary.checkpoint)
        assert [line.step for line in open_run(folder.path).steps()] == list(range(1, summary.steps + 1))
        assert [path.name for path in folder.checkpoints.glob(".*")] == []
        announced = [note for note in told.notes if note.startswith("interrupted: saving what was learned")]
        assert announced
        assert ("Ctrl-C again" in announced[0]) == (summary.signal == "SIGINT")
        return summary

    return interrupted


@pytest.fixture
def slow_saves(monkeypatch):
    """Makes writing a checkpoint slow enough for a signal to come in the middle; what does so is returned."""
    acts = []

    def save_slowly(folder, *arguments, save=checkpointer.save_checkpoint, **options):
        for act in acts:
            act()
        time.sleep(0.3)
        save(folder, *arguments, **options)

    monkeypatch.setattr(checkpointer, "save_checkpoint", save_slowly)
    return acts


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_one_that_comes_while_a_checkpoint_is_saved_lets_it_become_whole(interrupted, slow_saves, told, number):
    slow_saves.append(lambda: send(number))
    assert interrupted().steps == 1


def test_one_that_comes_while_the_last_checkpoint_is_saved_ends_no_completed_run(interrupted, slow_saves):
    slow_saves.append(send)
    assert interrupted(None, "training.checkpoint_every=0").steps == 3


@pytest.mark.parametrize("activity", ["loading the model", "rolling out", "learning"])
def test_one_is_answered_in_every_activity(interrupted, told, activity):
    told.acts[activity] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    interrupted()


def rounds_of(seconds):
    """How much work in C, during which other threads run, takes so long here."""
    began = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
    return round(100_000 * seconds / (time.perf_counter() - began))


@pytest.mark.parametrize("timeout_s", [0.5, 60], ids=["past its deadline", "before its deadline"])
def test_one_that_an_agent_in_c_keeps_from_python_is_not_lost_and_is_announced_at_once(interrupted, told, timeout_s):
    calls, said = iter(range(100)), []

    async def blocks(data, *, base_url, api_key, http_client):
        from openai import AsyncOpenAI

        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])
        if next(calls) == 6:
            send(after=0.3)
            hashlib.pbkdf2_hmac("sha256", b"", b"", rounds_of(2.0))
            said.extend(told.notes)
        return 1.0

    assert interrupted(blocks, f"rollout.episode_timeout={timeout_s}").steps == 1
    if timeout_s > 1:
        assert "Ctrl-C again" in said[-1]


def test_a_terminal_that_closes_may_say_so_twice(interrupted, slow_saves):
    slow_saves.append(lambda: [send(signal.SIGHUP), send(signal.SIGHUP, after=0.1)])
    interrupted()


def test_in_a_running_loop_as_of_a_notebook_it_is_answered_too(interrupted, told, slow_saves):
    slow_saves.append(send)

    def in_a_cell(train):
        async def cell():
            return train()

        return asyncio.run(cell())

    interrupted(run=in_a_cell)


def test_in_a_session_a_second_one_ends_the_call_and_not_the_process(trainer, told, monkeypatch, slow_saves):
    monkeypatch.setattr("builtins.__IPYTHON__", True, raising=False)
    over = threading.Event()
    slow_saves.extend([send, lambda: send(after=0.1), lambda: over.wait(30)])
    with trainer("tasks.eval=null") as training, pytest.raises(KeyboardInterrupt):
        training.train()
    over.set()
    for thread in threading.enumerate():
        if thread.name == "agentrl-run":
            thread.join(30)


def test_one_that_is_ignored_stays_ignored(trainer, told, slow_saves):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        slow_saves.append(lambda: send(signal.SIGHUP))
        with trainer("tasks.eval=null") as training:
            assert training.train().outcome == "completed"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_sent_to_a_copy_of_the_process_is_answered_there_alone(trainer, told):
    """As by a pool of processes that an agent or a reward has, when it ends, and by Ctrl-C in a terminal."""
    ends = []

    def fork():
        for number in (signal.SIGTERM, signal.SIGHUP):
            began, begins = os.pipe()
            if not (child := os.fork()):
                os.write(begins, b"!")
                time.sleep(10)
                os._exit(1)
            os.read(began, 1)
            os.kill(child, number)
            ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os.close(began)
            os.close(begins)

    told.acts["learning"] = fork
    with trainer("tasks.eval=null", "training.steps=1") as training:
        assert training.train().outcome == "completed"
    assert ends == [-signal.SIGTERM, -signal.SIGHUP]


def test_a_display_that_fails_keeps_no_signal_from_its_answer(interrupted, told, monkeypatch, capsys):
    def note(text):
        told.notes.append(text)
        if text.startswith("interrupted"):
            raise ZeroDivisionError

    monkeypatch.setattr(told, "note", note)
    told.acts["rolling out"] = lambda: os.kill(os.getpid(), signal.SIGINT)
    interrupted()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_handlers_are_those_from_before_when_a_run_has_ended(interrupted, told):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    told.acts["rolling out"] = lambda: os.kill(os.getpid(), signal.SIGINT)
    interrupted()
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_an_evaluation_ends_with_all_that_it_has_made(trainer, told, monkeypatch, tmp_path, number):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path(tempfile.gettempdir()).mkdir()
    told.acts["evaluating"] = lambda: os.kill(os.getpid(), number)
    with trainer() as training, pytest.raises(KeyboardInterrupt):
        training.evaluate()
    assert "interrupted: ending the evaluation" in told.notes[0]
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


IMPATIENT = "from agentrl.training import interrupts; interrupts._PATIENCE_S = 0.5"
AGENTS = """
import asyncio, time
from openai import AsyncOpenAI

seen = []

async def ask(data, base_url, api_key, http_client):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])
    seen.append(data)

async def blocks(data, *, base_url, api_key, http_client):
    await ask(data, base_url, api_key, http_client)
    if len(seen) == 6:
        print("blocked", flush=True)
        while True:
            time.sleep(1)
    return float(len(seen) % 2)

async def leaves_calls(data, *, base_url, api_key, http_client):
    await ask(data, base_url, api_key, http_client)
    asyncio.ensure_future(asyncio.to_thread(time.sleep, 3600))
    return float(len(seen) % 2) + len(await asyncio.to_thread(str))
"""


HURRIED = """
import asyncio
from pathlib import Path
from openai import AsyncOpenAI

async def agent(data):
    Path("begun").touch()
    await asyncio.sleep(1)
    async with AsyncOpenAI() as client, asyncio.timeout(2.5):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])
    return 1.0
"""


@pytest.fixture
def agentrl(tmp_path, warm):
    """The command, as a process, with some agents; what it has printed is in files."""
    (tmp_path / "mine.py").write_text(AGENTS)
    started = []

    def start(*arguments):
        settings = [*arguments[:2], *BRIEF, *arguments[2:], "tasks.eval=null", "run.name=run"]
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            started.append(warm.start(*settings, cwd=tmp_path, before=IMPATIENT, stdout=out, stderr=err))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_what_was_learned_is_saved_beside_an_agent_that_never_lets_go(agentrl, tmp_path):
    process = agentrl("train", "mine.py:blocks")
    while process.poll() is None and "blocked" not in (tmp_path / "out").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    assert (summary["outcome"], summary["steps"]) == ("interrupted", 1)
    AutoModelForCausalLM.from_pretrained(tmp_path / summary["checkpoint"])
    assert f"checkpoint: {summary['checkpoint']}" in (tmp_path / "err").read_text()


def test_a_run_ends_though_its_agents_have_left_more_calls_than_there_are_threads(agentrl, tmp_path):
    process = agentrl("train", "mine.py:leaves_calls", "rollout.tasks_per_step=16")
    assert process.wait(60) == 0, (tmp_path / "err").read_text()
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["outcome"] == "completed"
    assert "has left a blocking call running in a thread" in (tmp_path / "err").read_text()


@pytest.mark.slow
def test_a_signal_ends_a_run_whose_agents_hold_every_thread(agentrl, tmp_path):
    process = agentrl("train", "mine.py:leaves_calls", "rollout.tasks_per_step=16", "training.steps=10000")
    metrics = tmp_path / "runs/run/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, (tmp_path / "err").read_text()
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    assert summary["outcome"] == "interrupted"
    assert (tmp_path / summary["checkpoint"] / "model.safetensors").exists()


def test_a_terminal_that_is_closed_ends_a_run_as_ctrl_c_does(tmp_path, warm):
    (tmp_path / "mine.py").write_text(AGENTS)
    ours, theirs = pty.openpty()
    settings = [*BRIEF, "tasks.eval=null", "run.name=run", "training.steps=10000"]
    process = warm.start("train", "math", *settings, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    metrics = tmp_path / "runs/run/metrics.jsonl"
    shown = threading.Thread(target=read_all, args=[ours], daemon=True)
    shown.start()
    try:
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
            time.sleep(0.05)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 130
    finally:
        process.kill()
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    assert summary["outcome"] == "interrupted"
    assert (tmp_path / summary["checkpoint"] / "model.safetensors").exists()


def read_all(terminal):
    """What nobody reads fills a terminal, and whoever writes to it waits then."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


@pytest.mark.slow
def test_a_pause_of_the_run_alone_is_no_time_of_its_workers_either(agentrl, tmp_path):
    (tmp_path / "hurried.py").write_text(HURRIED)
    settings = ("rollout.mode=subproc", "rollout.episode_timeout=4", "rollout.tasks_per_step=1", "training.steps=1")
    process = agentrl("train", "hurried.py:agent", *settings)
    while process.poll() is None and not (tmp_path / "begun").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert {episode.outcome for episode in open_run(tmp_path / "runs/run").load_episodes()} == {"rewarded"}
