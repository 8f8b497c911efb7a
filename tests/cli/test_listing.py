"""``agentrl list-agents``, its sisters and ``agentrl plugins``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.installing import install

RAISES = "raise RuntimeError('imported')\n"
HOOKS = (
    "from agentrl import hookimpl\nfrom agentrl.agents.contract import AgentWorkflow\n"
    "@hookimpl\ndef agentrl_register(registry):\n    registry.add('agents', 'late', AgentWorkflow)\n"
)
SISTERS = ["agents", "rewards", "tasks", "models", "algorithms", "backends", "dialects", "normalisers", "trackers"]
HEAVY = ["torch", "transformers", "openai", "httpx", "pydantic", "pydantic_settings", "rich", "yaml", "asyncio"]

REPORT = """
import sys
from agentrl.cli import main
try:
    main(sys.argv[1:])
finally:
    print("\\n".join(sys.modules), file=open({path!r}, "w"))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What subprocesses find on ``PYTHONPATH``: two distributions that raise when they are imported, one that works."""
    site = tmp_path / "site"
    raising = {f"agentrl.{kind}": {f"raising-{kind}": "raising_mod:Thing"} for kind in SISTERS}
    hooks = {"agentrl.plugins": {"raising-hooks": "raising_mod"}}
    install(site, "agentrl-raising", {**raising, **hooks}, version="0.3", files={"raising_mod.py": RAISES})
    install(site, "agentrl-late", {"agentrl.plugins": {"late": "late_mod"}}, files={"late_mod.py": HOOKS})
    twins = {"agentrl.agents": {"twin": "raising_mod:Thing"}}
    install(site, "agentrl-left", twins)
    install(site, "agentrl-right", twins)
    install(site, "agentrl-future", {"agentrl.agents": {"future": "f:F"}}, requires=("agentrl-core>=99",))
    return site


def agentrl(site: Path, *arguments: str, code: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else ["-m", "agentrl"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGENTRL_")}
    return subprocess.run(
        [sys.executable, *command, *arguments],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": str(site), **environ},
        timeout=60,
    )


def listed(site: Path, *arguments: str) -> Any:
    result = agentrl(site, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("verb", [*(f"list-{kind}" for kind in SISTERS), "plugins", "--help"])
def test_listing_imports_neither_plugins_nor_anything_heavy(site: Path, tmp_path: Path, verb: str) -> None:
    report = tmp_path / "modules"
    result = agentrl(site, verb, code=REPORT.format(path=str(report)))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    modules = set(report.read_text().split())
    assert "agentrl.cli" in modules
    assert not modules & {"raising_mod", "late_mod", *HEAVY}
    assert verb == "--help" or "raising-" in result.stdout


def test_a_listing_shows_name_distribution_and_target_then_what_is_broken(site: Path) -> None:
    lines = agentrl(site, "list-agents").stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("math ")] == ["agentrl-core"]
    assert [line.split() for line in lines if line.startswith("raising")] == [
        ["raising-agents", "agentrl-raising", "0.3", "raising_mod:Thing"]
    ]
    (broken,) = [line for line in lines if line.startswith("broken: ")]
    assert broken.startswith("broken: agentrl-future (agentrl-future 1.0): it needs agentrl-core>=99 and this is ")
    assert lines[-1] == broken


def test_a_listing_shows_what_a_name_is_and_its_settings(site: Path) -> None:
    lines = agentrl(site, "list-rewards").stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("numeric-match ")]
    assert lines[at + 1].startswith("    1 where the last number of the answer equals ")
    assert lines[at + 2] == "    settings: field=answer, tolerance=0.0"
    calculator = next(each for each in listed(site, "list-agents")["agents"] if each["name"] == "calculator")
    assert calculator["help"].startswith("Lets the model call a tool")
    assert calculator["settings"] == [
        {"name": "max_turns", "type": "integer", "required": False, "default": "3", "help": ""}
    ]


def test_names_claimed_twice_are_listed_as_they_have_to_be_written(site: Path) -> None:
    entries = {entry["reference"]: entry for entry in listed(site, "list-agents")["agents"]}
    assert {"agentrl-left/twin", "agentrl-right/twin", "math"} <= entries.keys()
    assert entries["math"]["distribution"] == "agentrl-core"
    assert entries["math"]["target"] == "agentrl_agents.math:MathAgent"


def test_all_lists_names_of_run_time_and_isolates_the_hook_plugin_that_fails(site: Path) -> None:
    names = [entry["name"] for entry in listed(site, "list-agents")["agents"]]
    assert "late" not in names
    loaded = listed(site, "list-agents", "--all")
    assert {"late", "math"} <= {entry["name"] for entry in loaded["agents"]}
    reasons = {broken["name"]: broken["reason"] for broken in loaded["broken"]}
    assert reasons["raising-hooks"].startswith("importing raising_mod raised RuntimeError: imported")


def test_plugins_shows_what_is_installed_disabled_in_conflict_and_broken(site: Path) -> None:
    result = agentrl(site, "-p", "no:late", "plugins", AGENTRL_DISABLE_PLUGINS="raising-tasks,elsewhere")
    lines = result.stdout.splitlines()
    assert "agentrl-raising 0.3" in lines
    assert "disabled: task set raising-tasks (agentrl-raising 0.3), by AGENTRL_DISABLE_PLUGINS" in lines
    assert "disabled: plugin late (agentrl-late 1.0), by -p no:late" in lines
    assert "disabled: elsewhere, which is not installed" in lines
    assert "conflict: agent twin is claimed twice: write agentrl-left/twin or agentrl-right/twin" in lines
    assert lines[-1].startswith("broken: agentrl-future (agentrl-future 1.0): ")


def test_plugins_as_json_holds_the_same(site: Path) -> None:
    report = listed(site, "plugins", "-p", "no:late")
    assert {"kind": "plugins", "name": "late", "by": "-p no:late"}.items() <= report["disabled"][0].items()
    assert report["conflicts"] == [
        {"kind": "agents", "name": "twin", "references": ["agentrl-left/twin", "agentrl-right/twin"]}
    ]
    assert [broken["name"] for broken in report["broken"]] == ["agentrl-future"]
    assert report["disabled_but_missing"] == []
    assert ("agents", "math") in [(entry["kind"], entry["name"]) for entry in report["entries"]]


def test_plugins_all_imports_everything_and_says_what_fails(site: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers'])); from agentrl.cli import main; main()"
    )
    result = agentrl(site, "-p", "no:agentrl-core", "plugins", "--all", code=code)
    assert result.returncode == 0, result.stderr
    broken = [line for line in result.stdout.splitlines() if line.startswith("broken: ")]
    assert sum("raising_mod raised RuntimeError: imported" in line for line in broken) == len(SISTERS) + 3
    assert "late" in result.stdout


def test_a_reader_that_leaves_early_is_no_error(site: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-m", "agentrl", "list-agents"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    assert writer.stderr.read() == ""
    writer.stderr.close()
    assert writer.wait(60) == 1
