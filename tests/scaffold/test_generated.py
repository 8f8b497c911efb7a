"""What the verb writes does what the verb says: its commands, as printed, in an environment of their own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from agentrl.scaffold import PluginKind

pytestmark = pytest.mark.slow

KINDS: tuple[PluginKind, ...] = get_args(PluginKind)
LEARNERS = ("reward", "dialect")
"""Each is trained by the command that is printed for it, and learns; so is an agent."""

OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""Keeps pip to what this environment has; isolation is off at 0."""

SMALL = {
    "AGENTRL_TRAINING__STEPS": "6",
    "AGENTRL_TRAINING__LEARNING_RATE": "3e-4",
    "AGENTRL_ROLLOUT__TASKS_PER_STEP": "4",
    "AGENTRL_EVALUATION__TASKS": "16",
}

WRITE_ALL = """
from agentrl.cli import main
for kind in {kinds!r}:
    try:
        main(["new-plugin", f"my-{{kind}}", "--kind", kind])
    except SystemExit as left:
        assert not left.code, kind
"""
"""What starting a plugin of every kind comes to, in one interpreter."""

SCRIPT = "#!{python}\nfrom agentrl.cli import main\nmain()\n"


@dataclass(frozen=True)
class Environment:
    """A throwaway environment that has what this one has, and a folder to work in."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Environment:
        venv.create(folder / "env")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        here = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (folder / "env/lib" / version / "site-packages/base.pth").write_text(here)
        script = folder / "env/bin/agentrl"
        script.write_text(SCRIPT.format(python=folder / "env/bin/python"))
        script.chmod(0o755)
        return cls(folder)

    def __call__(self, line: str) -> str:
        """Run a line as a shell does where the environment is active; returns its stdout."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTRL_", "PYTEST_"))}
        path = f"{self.folder / 'env/bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.folder,
            env={**inherited, **OFFLINE, **SMALL, "PATH": path},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@dataclass(frozen=True)
class Author:
    """Somebody who has written a plugin of every kind, ``my-KIND``, and installed them all in one environment."""

    agentrl: Environment
    printed: dict[str, list[str]]
    """The four commands that were printed for each kind: install, list, test and use it."""


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Author:
    agentrl = Environment.made(tmp_path_factory.mktemp("author"))
    said = agentrl(f"python -c {shlex.quote(WRITE_ALL.format(kinds=KINDS))}").splitlines()
    in_fives = [said[start : start + 5] for start in range(0, len(said), 5)]
    printed = {
        kind: [command.strip() for command in commands] for kind, (_, *commands) in zip(KINDS, in_fives, strict=True)
    }
    # Together, which spares time; apart they are the same commands.
    sources = [install.removeprefix("python -m pip install -e ") for install, *_ in printed.values()]
    agentrl(f"python -m pip install {' '.join(f'-e {source}' for source in sources)}")
    return Author(agentrl, printed)


def gain_of(run: Path) -> float:
    """How much the held-out reward of a run rose."""
    learned = json.loads((run / "summary.json").read_text())
    return float(learned["reward_after"] - learned["reward_before"])


def test_the_commands_that_it_prints_install_list_test_and_train_it(author: Author) -> None:
    agentrl = author.agentrl
    _, *commands = agentrl("agentrl new-plugin sample --kind agent").splitlines()
    install, listing, test, train = (command.strip() for command in commands)
    agentrl(install)
    (line,) = [line for line in agentrl(listing).splitlines() if line.startswith("sample ")]
    assert line.split() == ["sample", "agentrl-sample", "0.1.0", "agentrl_sample.agent:SampleAgent"]
    assert " passed" in agentrl(test)
    agentrl(f"{train} run.name=sample")
    assert gain_of(agentrl.folder / "runs/sample") > 0.2


def test_each_is_listed_with_its_distribution(author: Author) -> None:
    listings = {listing for _, listing, _, _ in author.printed.values()}
    listed = {listing: author.agentrl(listing).splitlines() for listing in listings}
    for kind, (_, listing, _, _) in author.printed.items():
        assert [line for line in listed[listing] if f"my-{kind}" in line], kind
    for kind in ("agent", "reward", "backend", "dialect"):
        (line,) = [line for line in listed[f"agentrl list-{kind}s"] if line.startswith(f"my-{kind} ")]
        target = f"agentrl_my_{kind}.{kind}:My{kind.capitalize()}"
        assert line.split() == [f"my-{kind}", f"agentrl-my-{kind}", "0.1.0", target]


def test_each_passes_its_own_tests(author: Author) -> None:
    folders = [test.removeprefix("python -m pytest ") for _, _, test, _ in author.printed.values()]
    assert " passed" in author.agentrl(f"python -m pytest --import-mode=importlib {' '.join(folders)}")


@pytest.mark.parametrize("kind", LEARNERS)
def test_what_brings_an_agent_learns_by_the_command_that_is_printed(author: Author, kind: str) -> None:
    *_, train = author.printed[kind]
    author.agentrl(f"{train} run.name={kind}")
    assert gain_of(author.agentrl.folder / "runs" / kind) > 0.2


def test_the_backend_samples_what_is_learned(author: Author) -> None:
    *_, train = author.printed["backend"]
    author.agentrl(f"{train} run.name=backend")
    assert gain_of(author.agentrl.folder / "runs/backend") > 0.2


def test_all_others_take_part_in_one_run_as_they_are(author: Author) -> None:
    apart = ("agent", "backend", *LEARNERS)
    uses = {kind: use for kind, (*_, use) in author.printed.items() if kind not in apart}
    settings = [use.removeprefix("agentrl train math") for use in uses.values() if use.startswith("agentrl train math")]
    author.agentrl(f"XDG_CACHE_HOME=cache agentrl train math {' '.join(settings)} run.name=all")
    run = author.agentrl.folder / "runs/all"
    learned = json.loads((run / "summary.json").read_text())
    assert gain_of(run) > 0.1
    assert (run / "my-tracker.csv").read_text().count("reward/mean") == learned["steps"]
    assert sum(json.loads((run / "my-hooks.json").read_text()).values()) == learned["episodes"]
    config = (run / "config.yaml").read_text()
    assert all(f"my-{kind}" in config for kind in ("tasks", "tracker", "model", "algorithm", "scheduler", "executor"))
    assert f"{learned['reward_after']:.3f}  all" in author.agentrl(uses["command"]).splitlines()
