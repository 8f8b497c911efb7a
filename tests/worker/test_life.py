"""A worker's life: greeting, loading, leaving, and what it says when something is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest
from tests.worker.rollout_end import DEADLINE_S, PROCESS_ENDPOINT, is_gone, is_over

from agentrl.worker.protocol import LONGEST, PROTOCOL, encode, error_from_json

SIMPLE = """
    async def agent(data):
        return 1.0
"""


def refusal(answer: dict[str, object]) -> str:
    assert answer["type"] == "refused", answer
    error = error_from_json(answer["error"])
    return f"{type(error).__name__}: {error}"


def by_hand(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentrl.worker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)


def test_a_worker_greets_loads_runs_and_stops(rollout, write):
    hello = rollout.greet()
    assert hello["protocol"] == PROTOCOL
    assert hello["python"] == ".".join(str(part) for part in sys.version_info[:3])
    rollout.say("load", agent=write(SIMPLE), kwargs={}, disabled=[], outcomes=[], endpoint=PROCESS_ENDPOINT)
    assert rollout.hear() == {"type": "loaded", "is_async": True, "returns_answer": False}
    assert rollout.run() == 1.0
    assert rollout.stop() == 0
    assert rollout.log() == ""


def test_another_protocol_is_answered_and_ends_it(rollout):
    rollout.say("hello", protocol=PROTOCOL + 1, core="99.0", news=True)
    assert rollout.hear()["protocol"] == PROTOCOL
    assert rollout.exit_code() == 0
    assert rollout.log() == ""


@pytest.mark.parametrize(
    "lines",
    [
        [b"GET / HTTP/1.1\n"],
        [b'{"type": "load"}\n'],
        [encode({"type": "hello", "protocol": PROTOCOL}), b'{"type": "run"}\n'],
        [b'{"type": "' + b"x" * LONGEST + b'"}\n'],
    ],
    ids=["no message", "no greeting", "an episode before the agent", "without an end"],
)
def test_what_is_no_message_ends_it_with_a_line(rollout, lines):
    try:
        for line in lines:
            rollout.write(line)
    except ConnectionError:
        pass  # It need not read to the end.
    assert rollout.exit_code() == 1
    assert rollout.log().startswith("agentrl.worker: the rollout broke the protocol: ")
    assert rollout.log().count("\n") == 1


@pytest.mark.parametrize("message", [{"type": "sing"}, {"type": "run", "id": 1}, {"type": "load"}])
@pytest.mark.parametrize("code", [SIMPLE, SIMPLE.replace("async ", "")], ids=["async", "plain"])
def test_a_message_that_makes_no_sense_later_ends_it_too(loaded, code, message):
    rollout = loaded(code)
    rollout.say(**message)
    assert rollout.exit_code() == 1
    assert "the rollout broke the protocol" in rollout.log()
    assert "Traceback" not in rollout.log()


def test_by_hand_it_says_what_it_is_for():
    for arguments in ([], ["--fd", "12345"], ["--fd", "2"], ["--fd", "x"]):
        ended = by_hand(*arguments)
        assert ended.returncode == 2
        assert "usage: python -m agentrl.worker" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert "rollout.mode=subproc" in by_hand("--help").stdout


def test_facts_of_the_agent_are_told(loaded):
    rollout = loaded("""
        class agent:
            returns_answer = True
            def run(self, data):
                return data["x"]
    """)
    assert rollout.run({"x": "an answer"}) == "an answer"


def test_kwargs_arrive_and_wrong_ones_are_refused(start, write):
    source = write("""
        class agent:
            def __init__(self, style="plain"):
                self.style = style
            async def run(self, data, *, turns):
                return [self.style, turns]
    """)
    rollout = start()
    assert rollout.load(source, style="brief", turns={"most": 3})["type"] == "loaded"
    assert rollout.run() == ["brief", {"most": 3}]
    assert "ConfigError" in (said := refusal(start().load(source, styel="brief", turns=1)))
    assert "did you mean 'style'" in said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import a_missing_library", "PluginError: .*No module named 'a_missing_library'.*install 'a_missing_library'"),
        ("import sys; sys.exit(3)", r"PluginError: .*an_agent\.py.*SystemExit: 3"),
        ("1 / 0", r"PluginError: .*ZeroDivisionError.*an_agent\.py:1"),
        ("raise KeyboardInterrupt('now')", "AgentError: KeyboardInterrupt: now"),
        ("raise BaseException('rare')", "AgentError: BaseException: rare"),
        ("agent = 3", "ConfigError: .*no agent.*async def run"),
        ("other = 3", "ConfigError: .*has no 'agent'"),
        ("def agent(data):\n    yield 1.0", "ConfigError: .*is a generator"),
    ],
)
def test_an_agent_that_does_not_load_is_refused_with_the_reason(rollout, write, source, said):
    assert re.search(said, refusal(rollout.load(write(source))))
    assert rollout.stop() == 0


def test_names_that_exist_nowhere_are_refused(start):
    assert "there is no agent 'no-such-agent'" in refusal(start().load("no-such-agent"))
    assert "there is no agent module 'no_such_module'" in refusal(start().load("no_such_module:agent"))


def test_a_plugin_that_is_disabled_need_not_be_installed_here(rollout):
    assert rollout.load("math", disabled=("a-plugin-of-the-other-side",))["type"] == "loaded"


def test_a_disabled_agent_is_refused(rollout):
    assert "agent 'math' of agentrl-core" in refusal(rollout.load("math", disabled=("math",)))


def test_an_agent_sees_no_command_line_and_no_input(loaded):
    rollout = loaded("""
        import sys
        at_import = sys.argv[1:]
        async def agent(data):
            return [at_import, sys.argv[1:], sys.stdin.read()]
    """)
    assert rollout.run() == [[], [], ""]


def test_what_is_printed_is_there_when_the_process_dies(loaded):
    rollout = loaded("""
        import os
        async def agent(data):
            print("before \\ud800 the end")
            os._exit(7)
    """)
    rollout.begin(1)
    assert rollout.exit_code() == 7
    assert rollout.log() == "before \\ud800 the end\n"


@pytest.mark.parametrize(
    "code",
    [
        "import threading, time; threading.Thread(target=time.sleep, args=(3600,)).start()",
        "import atexit, time; atexit.register(time.sleep, 3600)",
        "import time\nwhile True: time.sleep(1)",
        "import asyncio\nwhile True:\n    try: await asyncio.sleep(3600)\n    except asyncio.CancelledError: pass",
    ],
    ids=["thread", "atexit", "blocking", "not to be cancelled"],
)
def test_it_stops_whatever_is_in_the_way(loaded, code):
    body = code.replace("\n", "\n    ")
    rollout = loaded(f"async def agent(data):\n    print('begun')\n    {body}\n    return 1.0\n")
    rollout.begin(1)
    assert is_over(lambda: "begun" in rollout.log())
    assert rollout.stop() == 0


def test_it_stops_while_it_imports(rollout, write):
    rollout.greet()
    source = write("import time\nprint('importing')\ntime.sleep(3600)")
    rollout.say("load", agent=source, kwargs={}, disabled=[], outcomes=[], endpoint=PROCESS_ENDPOINT)
    assert is_over(lambda: "importing" in rollout.log())
    assert rollout.stop() == 0


def test_a_stop_cancels_and_lets_agents_clean_up(loaded):
    rollout = loaded("""
        import asyncio, atexit
        atexit.register(print, "at exit")
        async def agent(data):
            try:
                print("begun")
                await asyncio.sleep(3600)
            finally:
                print("cleaned up")
    """)
    rollout.begin(1)
    assert is_over(lambda: "begun" in rollout.log())
    assert rollout.stop() == 0
    assert "cleaned up" in rollout.log()
    assert rollout.log().endswith("at exit\n")


GONE = {
    "waiting": "await asyncio.sleep(3600)",
    "blocking": "time.sleep(3600)",
    "a busy loop": "while True: pass",
    "holding the GIL": "sum(range(10**15))",
}


@pytest.mark.parametrize("code", GONE.values(), ids=GONE.keys())
def test_it_dies_with_the_rollout_and_takes_its_children_along(loaded, code):
    rollout = loaded(f"""
        import asyncio, os, subprocess, time
        async def agent(data):
            plain = subprocess.Popen(["sleep", "3600"])
            apart = subprocess.Popen(["sleep", "3600"], start_new_session=True)
            print(os.getpid(), plain.pid, apart.pid, flush=True)
            {code}
    """)
    rollout.begin(1)
    assert is_over(lambda: rollout.log().endswith("\n"))
    pids = [int(pid) for pid in rollout.log().split()]
    rollout.close()
    assert rollout.exit_code() != 0
    assert is_over(lambda: all(is_gone(pid) for pid in pids))


def test_a_rollout_that_leaves_answers_unread_is_missed_without_a_word(loaded):
    rollout = loaded("""
        async def agent(data):
            return "unread"
    """)
    rollout.begin(1)
    assert is_over(rollout.has_unread)
    rollout.close()
    assert rollout.exit_code() != 0
    assert rollout.log() == ""


def test_a_parent_that_is_killed_is_noticed(write, tmp_path):
    """Not only a socket that is closed in good order: the whole process that held it is gone."""
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path.cwd())!r})
        from tests.worker.rollout_end import Rollout, is_over
        rollout = Rollout()
        rollout.load({write("import time; agent = lambda data: time.sleep(3600)")!r})
        rollout.begin(1)
        print(rollout.process.pid, flush=True)
        time.sleep(3600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait(DEADLINE_S)
    parent.stdout.close()
    assert is_over(lambda: is_gone(worker))


def test_it_imports_nothing_of_the_training_side(rollout):
    assert rollout.load(f"{Path(__file__).parent / 'agents_on_modules.py'}:what_is_imported")["type"] == "loaded"
    heavy = {"torch", "transformers", "renderers", "uvicorn", "tokenizers", "datasets", "psutil"}
    above = {"agentrl.gateway", "agentrl.rollout", "agentrl.training", "agentrl.inference", "agentrl.tokens"}
    imported = set(rollout.run())
    assert "openai" in imported
    assert imported & (heavy | above | {"agentrl.rewards", "agentrl.tasks", "agentrl.runs", "agentrl.cli"}) == set()


def test_it_runs_in_another_interpreter(start, write, tmp_path):
    """One with a site-packages of its own, in which agentrl-core is installed: here by reference to ours."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    ours = sysconfig.get_path("purelib")
    Path(site.strip(), "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    rollout = start(python)
    assert rollout.load(write("import sys\nasync def agent(data):\n    return sys.executable"))["type"] == "loaded"
    assert rollout.run() == str(python)
