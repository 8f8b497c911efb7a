"""References to objects that nobody registered: ``pkg.mod:Obj`` and ``file.py:Obj``."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.installing import install

from agentrl.errors import AgentRLError, ConfigError, PluginError
from agentrl.plugins import Plugins
from agentrl.plugins.references import (
    FileReference,
    ModuleReference,
    NameReference,
    parse_reference,
)
from agentrl.rewards.verifier import Verifier
from agentrl.rollout.subproc import interpreter
from agentrl.rollout.subproc.executor import inspect_agent
from agentrl.rollout.subproc.interpreter import AgentLaunch

AGENT = "class Agent:\n    async def run(self, data):\n        return 1\n"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("math", NameReference("math")),
        ("agentrl-camel/math", NameReference("agentrl-camel/math")),
        ("objective.clip", NameReference("objective.clip")),
        ("pkg.mod:Obj", ModuleReference("pkg.mod", "Obj")),
        ("pkg.mod:Obj.inner", ModuleReference("pkg.mod", "Obj.inner")),
        ("agents/file.py:Obj", FileReference(Path("agents/file.py"), "Obj")),
        ("a:b/file.py:Obj", FileReference(Path("a:b/file.py"), "Obj")),
        ("file.py", FileReference(Path("file.py"), None)),
        ("file.py:", FileReference(Path("file.py"), None)),
        ("pkg.mod:", ModuleReference("pkg.mod", None)),
    ],
)
def test_the_form_of_a_reference_says_what_it_is(text: str, parsed: object) -> None:
    assert parse_reference(text) == parsed


def test_a_module_in_the_current_folder_is_found(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(f"class Outer:\n    x = 1\n{AGENT}")
    monkeypatch.chdir(tmp_path)
    assert Plugins().get("agents", "my_module:Agent").__name__ == "Agent"
    assert Plugins().get("agents", "my_module:Outer.x") == 1


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("my_package.inner.Agent", "Agent"),
        ("my_package.inner.Outer.Nested", "Nested"),
        ("my_package.Shown", "Shown"),
        ("my_package.inner", "Agent"),
        ("my_package.inner:", "Agent"),
    ],
)
def test_an_object_of_a_module_may_be_named_by_its_dotted_path(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: str, name: str
) -> None:
    write_package(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert Plugins().get("agents", reference).__name__ == name


def test_a_registered_name_wins_over_a_dotted_path(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_package(site)
    monkeypatch.chdir(tmp_path)
    install(site, "agentrl-dotted", {"agentrl.agents": {"my_package.inner.Agent": "my_package:Shown"}})
    assert Plugins().get("agents", "my_package.inner.Agent").__name__ == "Shown"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my_package.inner.Agnt", r"module 'my_package\.inner' has no 'Agnt' \(did you mean 'Agent'"),
        ("my_package.iner.Agent", r"module 'my_package' has no 'iner\.Agent' \(did you mean 'inner'"),
        ("my_packag.inner.Agent", r"there is no agent 'my_packag\.inner\.Agent' \(known: "),
        (
            "my_package.empty",
            r"my_package\.empty defines no agent \(define one, or name an object as my_",
        ),
        ("not-a-package.Agent", r"there is no agent 'not-a-package\.Agent'"),
    ],
)
def test_what_is_wrong_with_a_dotted_path_is_told(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: str, message: str
) -> None:
    write_package(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        Plugins().get("agents", reference)


def test_what_a_module_raises_is_told_of_its_dotted_path_too(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "raising.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match=r"agent module 'raising' raised ZeroDivisionError"):
        Plugins().get("agents", "raising.Agent")


def write_package(folder: Path) -> None:
    """A package with modules in it, fresh for every test."""
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("class Shown:\n    async def run(self, data):\n        return 1\n")
    (package / "inner.py").write_text(f"class Outer:\n    class Nested:\n        pass\n{AGENT}")
    (package / "empty.py").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_files_of_one_name_are_modules_of_their_own(site: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twice.py").write_text(f"def agent(): return {folder!r}", encoding="utf-8")
    one, two = (Plugins().get("agents", f"{tmp_path / folder / 'twice.py'}:agent") for folder in ("one", "two"))
    assert (one(), two()) == ("one", "two")
    assert pickle.loads(pickle.dumps(one)) is one
    assert one.__module__ == "twice"  # By which another process finds it too.


def test_a_file_is_run_once_and_may_import_its_neighbours(site: Path, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("import itertools\ncount = itertools.count()\n")
    (tmp_path / "mine.py").write_text(f"import neighbour\nruns = next(neighbour.count)\n{AGENT}")
    first = Plugins().get("agents", f"{tmp_path}/mine.py:Agent")
    assert Plugins().get("agents", f"{tmp_path}/../{tmp_path.name}/mine.py:Agent") is first
    assert Plugins().get("agents", f"{tmp_path}/mine.py:runs") == 0


ASYNC_FUNCTION = "import asyncio\nfrom pathlib import Path\nasync def agent(data):\n    return 1\n"
HELPERS = f"async def helper():\n    pass\ndef plain():\n    pass\n{AGENT}"
INSTANCE = "class _Agent:\n    async def run(self, data):\n        return 1\nagent = _Agent()\n"
CALLED = "class Agent:\n    async def __call__(self, data):\n        return 1\n"
CALLED_INSTANCE = CALLED.replace("Agent", "_Agent") + "agent = _Agent()\n"
SYNCHRONOUS = "class Agent:\n    def run(self, data):\n        return 1\n"


@pytest.mark.parametrize("text", [ASYNC_FUNCTION, HELPERS, INSTANCE, AGENT, CALLED, CALLED_INSTANCE])
def test_a_file_without_an_object_means_the_only_agent_in_it(site: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert Plugins().get("agents", f"{tmp_path}/mine.py") is not None


def test_a_reward_file_means_the_only_class_or_function_in_it(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from math import sqrt\ndef score(answer):\n    return sqrt(answer)\n")
    assert Plugins().get("rewards", f"{tmp_path}/mine.py")(4) == 2


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("{here}/mine.py", ConfigError, r"mine\.py defines several: One, Two \(say which, as in .*mine\.py:One\)"),
        ("{here}/empty.py", ConfigError, r"empty\.py defines no agent"),
        ("{here}/sync.py", ConfigError, r"sync\.py defines no agent"),
        ("{here}/mien.py:One", ConfigError, r"mien\.py' does not exist \(in .*: did you mean 'mine\.py'"),
        ("{here}/nowhere/mine.py", ConfigError, r"does not exist \(there is no \.py file in .*/nowhere\)"),
        ("{here}/imports.py:Nothing", ConfigError, r"imports\.py has no 'Nothing' \(known: Own\)"),
        ("{here}/mine.py:Tow", ConfigError, r"mine\.py has no 'Tow' \(did you mean 'Two'"),
        ("{here}/bad.py:One", PluginError, r"bad\.py' raised ZeroDivisionError: division by zero at .*/bad\.py:2"),
        ("{here}/typo.py:One", PluginError, r"typo\.py' raised SyntaxError: .*line 1"),
        ("{here}/needs.py:One", PluginError, r"ModuleNotFoundError.*\(install 'not_installed' for"),
        ("no_such_module:One", ConfigError, r"there is no agent module 'no_such_module' \(install it"),
        ("agentrl.error:One", ConfigError, r"there is no agent module 'agentrl\.error' \(did you mean 'errors'"),
        ("agentrl.errors:ConfigEror", ConfigError, r"has no 'ConfigEror' \(did you mean 'ConfigError'"),
        ("not-a-module:One", ConfigError, r"'not-a-module' cannot name a module"),
        (":One", ConfigError, "'' cannot name a module"),
    ],
)
def test_what_is_wrong_with_a_reference_is_one_line_with_its_fix(
    site: Path, tmp_path: Path, reference: str, error: type[AgentRLError], message: str
) -> None:
    (tmp_path / "mine.py").write_text(AGENT.replace("Agent", "One") + AGENT.replace("Agent", "Two"))
    (tmp_path / "empty.py").write_text("import asyncio\n")
    (tmp_path / "sync.py").write_text(SYNCHRONOUS)
    (tmp_path / "imports.py").write_text("import asyncio, json\nOwn = 1\n")
    (tmp_path / "bad.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "typo.py").write_text("def (:\n")
    (tmp_path / "needs.py").write_text("import not_installed\n")
    with pytest.raises(error, match=message) as caught:
        Plugins().get("agents", reference.format(here=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_that_raised_is_run_again_once_it_is_mended(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise ValueError\n")
    with pytest.raises(PluginError):
        Plugins().get("agents", f"{tmp_path}/mine.py")
    (tmp_path / "mine.py").write_text(f"# mended\n{AGENT}")
    assert Plugins().get("agents", f"{tmp_path}/mine.py").__name__ == "Agent"


def test_a_file_may_hold_the_native_object_of_a_framework(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from framework import Native\nasync def tool():\n    pass\nagent = Native()\n")
    files = {
        "framework.py": "class Native:\n    pass\n",
        "adapter.py": (
            "from agentrl import hookimpl\nfrom framework import Native\n"
            "@hookimpl\ndef agentrl_adapt_agent(obj):\n    return 'adapted' if isinstance(obj, Native) else None\n"
        ),
    }
    install(site, "agentrl-framework", {"agentrl.plugins": {"framework": "adapter"}}, files=files)
    plugins = Plugins()
    native = plugins.get("agents", f"{tmp_path}/mine.py")
    assert type(native).__name__ == "Native"
    assert plugins.adapt_agent(native) == "adapted"
    assert plugins.adapt_agent(3) == 3


TAKEN = ("math", "json", "asyncio", "openai", "httpx", "random")
"""Of the standard library, built in, frozen and not, and of what is installed."""


@pytest.fixture
def taken_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files that nobody means to import by these names."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in TAKEN:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was taken from the current folder')")
    (folder / "neighbour.py").write_text("reward = 1\n")
    imports = f"import neighbour, {', '.join(TAKEN)}\nfrom math import sqrt\n"
    (folder / "mine.py").write_text(f"{imports}{AGENT.replace('return 1', 'return neighbour.reward')}")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("reference", ["mine.py:Agent", "mine:Agent", "{folder}/mine.py:Agent"])
def test_what_lies_beside_a_file_takes_the_place_of_no_module_that_is_installed(
    taken_names: Path, reference: str
) -> None:
    """In interpreters that have imported nothing yet: that of the command, and a worker."""
    text = reference.format(folder=taken_names)
    code = f"from agentrl.plugins import Plugins; Plugins().get('agents', {text!r})"
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    process = AgentLaunch(text, {}, Path(sys.executable), dict(os.environ))
    assert asyncio.run(inspect_agent(process, deadline_s=60)).is_async


def test_the_command_as_a_module_takes_its_own_from_nowhere_else(taken_names: Path) -> None:
    ended = subprocess.run([sys.executable, "-m", "agentrl", "list-agents"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_file_whose_name_is_taken_is_found_by_its_path_and_what_takes_it_is_named(
    taken_names: Path,
) -> None:
    (taken_names / "json.py").write_text(AGENT)
    assert Plugins().get("agents", "json.py:Agent").__name__ == "Agent"
    with pytest.raises(ConfigError, match=r"'json' has no 'Agent' \(that module is .*json.*write json\.py:Agent\)"):
        Plugins().get("agents", "json:Agent")


@pytest.mark.parametrize(
    "command",
    [
        lambda: interpreter._ask(AgentLaunch("any", {}, Path(sys.executable), dict(os.environ))) is not None,
        lambda: Verifier(60.0).equal("1/2", "0.5"),
    ],
    ids=["probe of an interpreter", "verifier of mathematics"],
)
def test_no_process_of_ours_takes_its_modules_from_the_current_folder(taken_names: Path, command: Any) -> None:
    assert command()
