"""Making environments with a real venv and a real pip, from local folders."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.environments.conftest import Made, Told
from tests.environments.known import write_camel, write_environment
from tests.environments.projects import write_core
from tests.plugins.installing import install

from agentrl.environ import ENVIRONMENTS
from agentrl.environments import creating, environments, incomplete
from agentrl.environments.creating import CreationRequest, create_environment
from agentrl.environments.environment import LOG
from agentrl.environments.inspection import check_environment
from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins
from agentrl.plugins.entries import core_version


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_an_environment_has_core_the_plugin_and_its_agents(made: Made) -> None:
    environment = made.environment
    assert environment.path == made.folder / "sample"
    assert environment.fault is None
    assert environment.core == core_version()
    assert [str(plugin) for plugin in environment.plugins] == ["agentrl-sample 0.3"]
    assert [entry.name for entry in environment.entries("agents")] == ["first", "second"]
    assert environment.manifest.python_version == platform.python_version()
    assert environment.manifest.sources[:2] == (str(made.core), str(made.plugin))


def test_the_result_is_said_with_the_command_that_follows(made: Made) -> None:
    assert made.stdout.splitlines() == [
        f"sample: agentrl-sample 0.3 in {made.environment.path}",
        "train: agentrl train first or second",
    ]


def test_it_says_first_what_comes_from_where_and_keeps_all_that_pip_says(made: Made) -> None:
    lines = made.stderr.splitlines()
    assert lines[:4] == [
        f"making the environment sample of Python {platform.python_version()} in {made.environment.path}",
        f"installing agentrl-core from the folder {made.core}",
        f"installing agentrl-sample from the folder {made.plugin}",
        f"installing extra from the folder {made.plugin.parent / 'extra'}",
    ]
    pip = [line.strip() for line in lines if line.startswith("  ")]
    assert [line for line in pip if line.startswith("Successfully installed agentrl-core")]
    log = (made.environment.path / LOG).read_text()
    assert [line for line in pip if line not in log] == []


def test_what_a_recipe_uninstalls_is_gone(made: Made) -> None:
    assert "Successfully uninstalled extra-0.3" in made.stderr
    assert not list(made.environment.path.rglob("third_module.py"))


def test_its_interpreter_finds_the_agent_and_nothing_of_this_one_s_path(made: Made) -> None:
    code = "import first_module, sys; print(first_module.__file__); print(sys.prefix)"
    command = [made.environment.python, "-c", code]
    module, prefix = subprocess.check_output(command, text=True, timeout=60).splitlines()
    assert Path(module).is_relative_to(made.environment.path)
    assert prefix == str(made.environment.path)


def test_the_folders_that_it_was_built_from_are_not_touched(made: Made) -> None:
    files = {str(path.relative_to(made.plugin)) for path in made.plugin.rglob("*")}
    assert files == {"pyproject.toml", "backend.py", "src", "src/first_module.py", "src/second_module.py"}


def test_what_does_not_load_in_it_is_told_with_the_reason(made: Made, told: Told) -> None:
    (site,) = made.environment.path.glob("lib/python*/site-packages")
    files = {"torn_module.py": "print('noise')\nimport no_such_framework\n"}
    points = {"agentrl.agents": {"torn": "torn_module:Agent"}, "agentrl.plugins": {"torn-hooks": "torn_module"}}
    info = install(site, "agentrl-torn", points, files=files)
    try:
        faults = check_environment(made.environment, dict(os.environ), time.monotonic() + 60, told.show)
    finally:
        shutil.rmtree(info)
    assert [(fault.name, str(fault.distribution)) for fault in faults] == [
        ("torn-hooks", "agentrl-torn 1.0"),
        ("torn", "agentrl-torn 1.0"),
    ]
    assert all("No module named 'no_such_framework'" in fault.reason for fault in faults)
    assert "noise" in told.shown


def test_another_core_than_this_one_is_refused(folder: Path, told: Told) -> None:
    write_environment(folder / "old", core="0.0.1")
    with pytest.raises(PluginError, match=rf"brought agentrl-core 0.0.1 and this is {re.escape(core_version())}"):
        check_environment(environments()[0], {}, time.monotonic() + 60, told.show)


@pytest.mark.slow
def test_a_replacement_that_fails_leaves_what_was_there_and_says_why(
    made: Made, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENTS, str(made.folder))
    path, before = made.environment.path, made.environment.manifest
    asked = CreationRequest("sample", (str(made.core), "agentrl-nowhere==7"), replace=True)
    with pytest.raises(PluginError) as caught:
        create_environment(asked, Plugins(), told)
    assert "pip install failed: " in str(caught.value)
    assert "No matching distribution found for agentrl-nowhere==7" in str(caught.value)
    assert str(path / LOG) in str(caught.value.fix)
    assert "agentrl-nowhere" in (path / LOG).read_text()
    (environment,) = environments()
    assert environment.manifest == before
    subprocess.run([environment.python, "-c", "import first_module"], timeout=60, check=True)
    assert not {".previous", ".discarded"} & set(os.listdir(path))


@pytest.mark.slow
def test_ctrl_c_ends_pip_and_its_children_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    core = write_core(tmp_path / "core")
    (core / "slow").touch()
    command = [sys.executable, "-m", "agentrl", "env", "create", "slow", "--from", str(core)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Preparing metadata" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().rstrip().endswith("interrupted")
        assert process.wait(60) == 130
    assert not folder.exists() or os.listdir(folder) == [".slow.lock"]
    assert str(folder) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_a_deadline_ends_it(folder: Path, tmp_path: Path, told: Told) -> None:
    with pytest.raises(PluginError, match=r"python -m venv was not done after 0\.01 s .*--timeout"):
        create_environment(CreationRequest("camel", timeout_s=0.01), Plugins(), told)
    assert environments() == ()
    assert [path.name for path in incomplete()] == ["camel"]
    assert os.listdir(folder / "camel") == [LOG]


def test_a_disk_that_is_full_is_said_to_be(folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(creating, "run_shown", full)
    with pytest.raises(PluginError, match=r"camel: No space left on device \(free some space, or set AGENTRL_ENV"):
        create_environment(CreationRequest("camel", ("x",)), Plugins(), told)
    assert environments() == ()


def test_a_place_that_takes_no_folder_is_said_to_be(folder: Path, told: Told) -> None:
    folder.write_text("")
    with pytest.raises(PluginError, match=r"/camel: Not a directory: .* \(set AGENTRL_ENVIRONMENTS to another folder"):
        create_environment(CreationRequest("camel", ("x",)), Plugins(), told)


def test_a_name_that_is_taken_is_refused_with_the_flag_that_replaces(folder: Path, told: Told) -> None:
    write_camel(folder / "camel")
    with pytest.raises(ConfigError, match=r"'camel' already .agentrl env create camel --replace."):
        create_environment(CreationRequest("agentrl-camel"), Plugins(), told)


def test_an_environment_is_not_made_of_its_own_interpreter(
    made: Made, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENTS, str(made.folder))
    asked = CreationRequest("sample", python=str(made.environment.python), replace=True)
    with pytest.raises(ConfigError, match=r"bin/python is the environment's own \(name another with --python\)"):
        create_environment(asked, Plugins(), told)


def test_a_folder_that_is_no_environment_is_never_emptied(folder: Path, told: Told) -> None:
    (folder / "camel").mkdir(parents=True)
    (folder / "camel" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something that is no environment"):
        create_environment(CreationRequest("camel", replace=True), Plugins(), told)
    assert (folder / "camel" / "thesis.txt").read_text() == "mine"
