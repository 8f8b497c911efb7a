"""The parts that making an environment consists of: interpreters, programs, pip's words, and the folder itself."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from tests.environments.known import write_camel, write_environment

from agentrl.environments import environments, interpreters
from agentrl.environments.creating import failure_of, pip_environment
from agentrl.environments.environment import LOG
from agentrl.environments.folders import emptied, held, remove_environment
from agentrl.environments.interpreters import child_environment, find_interpreter, run_shown
from agentrl.errors import ConfigError, PluginError


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def visible(folder: Path) -> list[str]:
    """What is in a folder, but for the empty files that processes lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock" or path.stat().st_size)


def run(code: str, log: Path, seconds: float = 60) -> tuple[int, list[str]]:
    shown: list[str] = []
    result = run_shown([sys.executable, "-c", code], os.environ, log, time.monotonic() + seconds, shown.append)
    assert shown == result[1]
    return result


def test_this_interpreter_is_the_default_and_a_command_is_looked_up(tmp_path: Path) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert find_interpreter(None, dict(os.environ)).version == version
    named = script(tmp_path / "my python", f'exec "{sys.executable}" "$@"')
    assert find_interpreter(named, dict(os.environ)).path == sys.executable


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ('["/p", [3, 10, 2], []]', ConfigError, r"agentrl-core needs Python 3.11 or later and .* is 3.10.2 .*--python"),
        ('["/p", [3, 12, 2], ["ensurepip"]]', PluginError, "/p has no module ensurepip, .*apt install python3.12-venv"),
        ("hello", ConfigError, r"/python is no Python that runs: .* \(name another with --python\)"),
    ],
)
def test_an_interpreter_that_cannot_make_environments_is_refused_with_the_fix(
    tmp_path: Path, answer: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_interpreter(script(tmp_path / "python", f"echo '{answer}'"), {})
    with pytest.raises(ConfigError, match="there is no interpreter 'python9'"):
        find_interpreter("python9", {})


def test_nothing_of_this_interpreter_s_path_reaches_another(tmp_path: Path) -> None:
    environ = {"PYTHONPATH": "x", "PYTHONHOME": "y", "VIRTUAL_ENV": "z", "PIP_INDEX_URL": "u", "PATH": "p"}
    assert child_environment(environ) == {"PIP_INDEX_URL": "u", "PATH": "p"}


def test_pip_keeps_the_user_s_settings_but_never_installs_for_the_user() -> None:
    environ = pip_environment({"PIP_PROGRESS_BAR": "raw", "PIP_USER": "1", "PIP_INDEX_URL": "u"})
    assert (environ["PIP_PROGRESS_BAR"], environ["PIP_INDEX_URL"], environ["PIP_USER"]) == ("raw", "u", "0")
    assert environ["PIP_NO_INPUT"] == "1"


def test_what_a_program_says_is_shown_kept_and_returned(tmp_path: Path) -> None:
    code = "import sys; print('one'); print(' 1%\\r 99%', file=sys.stderr); print('\\xff' + 'é', end=''); sys.exit(3)"
    status, lines = run(code, tmp_path / "log")
    assert status == 3
    assert sorted(lines) == [" 99%", "one", "ÿé"]
    text = (tmp_path / "log").read_text()
    assert text.startswith(f"$ {sys.executable} -c ")
    assert all(line in text for line in lines)


def test_a_deadline_ends_a_program_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "_GRACE_S", 0.2)
    sleeper = f"import time\nwhile True: time.sleep(0.1)  # {tmp_path}"
    code = (
        "import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"subprocess.Popen([sys.executable, '-c', {sleeper!r}]).wait()"
    )
    with pytest.raises(TimeoutError):
        run(code, tmp_path / "log", seconds=1)
    assert str(tmp_path) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("lines", "reason", "fix"),
    [
        (
            ["Collecting a", "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"],
            "Could not install packages due to an OSError: [Errno 28] No space left on device",
            "free some space, or set AGENTRL_ENVIRONMENTS to another disk",
        ),
        (
            [
                "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)': /simple/a/",
                "ERROR: Could not find a version that satisfies the requirement a (from versions: none)",
                "ERROR: No matching distribution found for a",
            ],
            "Could not find a version that satisfies the requirement a (from versions: none); "
            "No matching distribution found for a",
            "check the network; PIP_INDEX_URL names another index and --from a local folder",
        ),
        (
            ["ERROR: Cannot install a and b because these package versions have conflicting dependencies.", "", "hint"],
            "Cannot install a and b because these package versions have conflicting dependencies.",
            "they cannot be installed together: change what is asked for",
        ),
        (["Traceback", "ValueError: odd", "", "[notice] a new release"], "Traceback; ValueError: odd", None),
        (["  error: metadata-generation-failed", "╰─> See above"], "metadata-generation-failed", None),
        (
            [
                "  error: subprocess-exited-with-error",
                "  ╰─> [2 lines of output]",
                "      Traceback (most recent call last):",
                "      ModuleNotFoundError: No module named 'wheel'",
                "      [end of output]",
                "  note: This error originates from a subprocess, and is likely not a problem with pip.",
                "  ERROR: Failed building wheel for a",
            ],
            "ModuleNotFoundError: No module named 'wheel'; Failed building wheel for a",
            None,
        ),
        ([], "it said nothing", None),
    ],
)
def test_a_failure_of_pip_is_its_telling_lines_and_what_to_do(lines: list[str], reason: str, fix: str | None) -> None:
    assert failure_of(lines) == (reason, fix)


def test_one_process_at_a_time_makes_an_environment(tmp_path: Path) -> None:
    with held(tmp_path / "camel"), held(tmp_path / "other"):
        message = "another process is making or removing the environment 'camel'"
        with pytest.raises(PluginError, match=message), held(tmp_path / "camel"):
            pytest.fail("held twice")
    with held(tmp_path / "camel"):
        pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), NotImplementedError()])
def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with held(tmp_path / "camel"):
        assert (tmp_path / "camel").is_dir()


def test_what_was_begun_and_never_finished_makes_room(tmp_path: Path) -> None:
    write_environment(tmp_path / "camel", manifest=None)
    (tmp_path / "camel" / ".previous").mkdir()
    with emptied(tmp_path / "camel"):
        assert os.listdir(tmp_path / "camel") == []


def fail_in(folder: Path, error: BaseException) -> None:
    """Make an environment in ``folder`` that fails at the last moment."""
    with emptied(folder):
        assert environments() == ()
        (folder / LOG).write_text("of this one")
        write_camel(folder, agents=("new",))
        raise error


@pytest.mark.parametrize(("error", "left"), [(PluginError("x"), [LOG]), (KeyboardInterrupt(), None)])
def test_where_there_was_none_only_the_log_of_a_failure_stays(
    folder: Path, error: BaseException, left: list[str] | None
) -> None:
    (folder / "camel").mkdir(parents=True)
    with pytest.raises(type(error)):
        fail_in(folder / "camel", error)
    assert (os.listdir(folder / "camel") if (folder / "camel").exists() else None) == left


@pytest.mark.parametrize(("error", "log"), [(PluginError("x"), "of this one"), (KeyboardInterrupt(), "of the first")])
def test_a_complete_environment_comes_back_whole_where_its_replacement_fails(
    folder: Path, error: BaseException, log: str
) -> None:
    write_camel(folder / "camel")
    (folder / "camel" / LOG).write_text("of the first")
    before, names = environments(), set(os.listdir(folder / "camel"))
    with pytest.raises(type(error)):
        fail_in(folder / "camel", error)
    assert environments() == before
    assert [entry.name for entry in environments()[0].entries("agents")] == ["camel-math"]
    assert set(os.listdir(folder / "camel")) == names
    assert (folder / "camel" / LOG).read_text() == log


def test_a_replacement_that_succeeds_leaves_nothing_of_the_first(folder: Path) -> None:
    write_camel(folder / "camel")
    with emptied(folder / "camel"):
        write_environment(folder / "camel")
    (environment,) = environments()
    assert environment.plugins == ()
    assert ".previous" not in os.listdir(folder / "camel")


def test_removing_takes_complete_and_incomplete_ones(folder: Path) -> None:
    write_camel(folder / "camel")
    write_environment(folder / "begun", manifest=None)
    assert remove_environment("agentrl-camel") == folder / "camel"
    assert remove_environment("begun") == folder / "begun"
    assert visible(folder) == []


def test_removing_touches_nothing_but_environments(folder: Path, tmp_path: Path) -> None:
    write_camel(folder / "camel")
    write_camel(tmp_path / "outside")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").touch()
    (folder / "linked").symlink_to(tmp_path / "outside")
    for name, message in {
        "cammel": r"there is no environment 'cammel' .did you mean 'camel'",
        "notes": r"notes holds something that is no environment .remove it yourself",
        "linked": r"linked is a link to another place .remove it yourself",
        "../outside": r"'../outside' is not the name of an environment",
    }.items():
        with pytest.raises(ConfigError, match=message):
            remove_environment(name)
    with held(folder / "camel"), pytest.raises(PluginError, match="another process is making or removing"):
        remove_environment("camel")
    assert visible(folder) == ["camel", "linked", "notes"]
    assert (tmp_path / "outside" / "pyvenv.cfg").exists()
