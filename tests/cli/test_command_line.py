"""The command line as a whole: its help, its errors and its exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from tests.plugins.installing import install

from agentrl.cli import main
from agentrl.cli.boundary import report_errors
from agentrl.errors import BackendError, ConfigError, PluginError, RunError

Run = Callable[..., tuple[int, str, str]]

COMMANDS = """
import click
from agentrl.errors import RunError

@click.command()
@click.pass_obj
def greet(app):
    "Say hello."
    click.echo(f"hello from {len(app.plugins.entries('commands'))}")

@click.command()
def fail():
    raise RunError("it\\nfailed", fix="mend it")

not_a_command = 3
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``agentrl`` here; returns its exit code, stdout and stderr."""

    def running(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    return running


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that brings verbs, good ones and others."""
    verbs = {
        "greet": "commands_mod:greet",
        "fail": "commands_mod:fail",
        "odd": "commands_mod:not_a_command",
        "gone": "commands_gone:gone",
        "plugins": "commands_mod:greet",
    }
    install(tmp_path, "agentrl-verbs", {"agentrl.commands": verbs}, files={"commands_mod.py": COMMANDS})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "commands_mod", raising=False)


def test_without_a_verb_the_help_is_shown_as_an_error_of_usage(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "list-agents" in err


@pytest.mark.parametrize("verb", ["train", "eval", "doctor", "list-agents", "list-rewards", "list-backends", "plugins"])
def test_every_verb_has_help_with_examples(run: Run, verb: str) -> None:
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert "Examples:" in out
    assert f"agentrl {verb}" in out.partition("Examples:")[2]
    assert "-p no:NAME" in out


def test_the_version_is_printed(run: Run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith("agentrl-core 0.")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["list-agent"], "there is no command 'list-agent' (did you mean 'list-agents' or"),
        (["list-agents", "--jsn"], "No such option"),
        (["list-agents", "extra"], "Got unexpected extra argument (extra) (see 'agentrl list-agents --help')"),
        (
            ["train", "--steps", "3"],
            "No such option '--steps' (settings are written KEY=VALUE: did you mean training.steps=…?)",
        ),
        (
            ["eval", "--training.steps=3"],
            "No such option '--training.steps' (settings are written KEY=VALUE: did you m",
        ),
        (
            ["doctor", "--group-size", "3"],
            "No such option '--group-size' (settings are written KEY=VALUE: did you mean ",
        ),
        (
            ["train", "--dry-runn"],
            "No such option '--dry-runn'. Did you mean '--dry-run'? (see 'agentrl train --help')",
        ),
        (["serve", "--modle", "tiny"], "No such option '--modle'. (Did you mean one of: '--idle', '--model'?)"),
        (["-p", "camel", "list-agents"], "Invalid value for '-p': 'camel' should be no:NAME"),
        (
            ["-p", "no:agentrl-cor", "list-agents"],
            "there is no plugin 'agentrl-cor' to disable (did you mean 'agentrl-c",
        ),
        (["list-agents", "-p", "no:agentrl-cor"], "there is no plugin 'agentrl-cor' to disable"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(run: Run, arguments: list[str], error: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("no"), 2), (PluginError("no"), 3), (RunError("no"), 1), (BackendError("no"), 1)],
)
def test_each_error_has_its_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise error

    assert report_errors(fails, debug=lambda: False) == code
    assert capsys.readouterr().err == "error: no\n"


def test_an_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    for interrupt in (KeyboardInterrupt(), click.Abort()):

        def interrupted(interrupt: BaseException = interrupt) -> None:
            raise interrupt

        assert report_errors(interrupted, debug=lambda: False) == 130
        assert capsys.readouterr().err == "interrupted\n"


def test_a_verb_may_return_its_exit_code() -> None:
    assert report_errors(lambda: 1, debug=lambda: False) == 1
    assert report_errors(lambda: None, debug=lambda: False) == 0


CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": ">&- 2>&- <&-"}


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [("stdin", "list-agents", 0), ("stdout", "list-agents", 0), ("stderr", "list-agentss", 2), ("all", "x", 2)],
)
def test_a_closed_stream_changes_nothing_but_what_is_seen(closed: str, arguments: str, code: int) -> None:
    shell = f'"{sys.executable}" -m agentrl {arguments} {CLOSED[closed]}'
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert (result.returncode, "Traceback" in result.stderr) == (code, False)


def test_an_output_that_takes_nothing_more_is_an_error_of_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    shell = f'"{sys.executable}" -m agentrl list-agents >/dev/full'
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr == "error: the result cannot be written to the standard output: No space left on device\n"


def test_an_error_of_several_lines_is_put_on_one_with_its_fix(commands: None, run: Run) -> None:
    assert run("fail") == (1, "", "error: it failed (mend it)\n")


@pytest.mark.parametrize("how", ["option", "option after the verb", "environment"])
def test_those_who_ask_are_shown_the_traceback(
    commands: None, run: Run, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("AGENTRL_DEBUG", "1")
    arguments = {"option": ["--debug", "fail"], "option after the verb": ["fail", "--debug"], "environment": ["fail"]}
    code, _, err = run(*arguments[how])
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: it failed (mend it)\n")


def test_verbs_of_plugins_join_the_command_line(commands: None, run: Run) -> None:
    assert run("greet") == (0, "hello from 5\n", "")
    assert run("agentrl-verbs/greet") == (0, "hello from 5\n", "")


def test_verbs_of_plugins_are_in_the_help_without_being_imported(commands: None, run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    section = out.partition("Commands of plugins:")[2]
    assert [line.split()[0] for line in section.splitlines() if "From agentrl-verbs 1.0." in line] == [
        "fail",
        "gone",
        "greet",
        "odd",
        "agentrl-verbs/plugins",
    ]
    assert "commands_mod" not in sys.modules


def test_a_plugin_does_not_take_a_verb_of_core_over(commands: None, run: Run) -> None:
    assert run("plugins")[1].startswith("agentrl-core ")
    assert run("agentrl-verbs/plugins")[1] == "hello from 5\n"


@pytest.mark.parametrize(
    ("verb", "code", "error"),
    [
        ("gone", 3, "command 'gone' of agentrl-verbs 1.0 does not load: importing commands_gone raised ModuleNotFound"),
        ("odd", 3, "command 'odd' is no click command but of type int"),
        ("gren", 2, "there is no command 'gren' (did you mean 'greet'"),
    ],
)
def test_a_verb_that_does_not_work_is_alone_in_that(commands: None, run: Run, verb: str, code: int, error: str) -> None:
    found, out, err = run(verb)
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


def test_a_disabled_verb_says_so(commands: None, run: Run) -> None:
    code, _, err = run("-p", "no:greet", "greet")
    assert (code, err) == (
        2,
        "error: command 'greet' of agentrl-verbs 1.0 is left out: disabled by -p no:greet (enable it to use it)\n",
    )


def test_the_installed_command_ends_in_the_same_way() -> None:
    command = Path(sys.executable).with_name("agentrl")
    result = subprocess.run([command, "list-agent"], capture_output=True, text=True, env={**os.environ}, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no command 'list-agent'")


LEFTOVERS = {
    "a thread": "threading.Thread(target=time.sleep, args=[3600]).start()",
    "a pool": "concurrent.futures.ThreadPoolExecutor().submit(time.sleep, 3600)",
    "a pool that has nothing to do": "concurrent.futures.ThreadPoolExecutor().submit(str)",
}


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_the_command_ends_whatever_threads_somebody_has_left_and_exit_handlers_are_run(leftover):
    code = f"""
import atexit, concurrent.futures, sys, threading, time
from agentrl.cli import main
atexit.register(print, "handled")
{LEFTOVERS[leftover]}
main()
"""
    ended = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[1:] == ["handled"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=str)
def test_every_command_takes_what_would_end_it_as_an_interrupt(number):
    code = f"""
import os
from agentrl.cli import main
from agentrl.cli.root import root
root.callback = lambda: os.kill(os.getpid(), {int(number)})
main()
"""
    ended = subprocess.run([sys.executable, "-c", code, "list-agents"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.strip()) == (130, "interrupted")
