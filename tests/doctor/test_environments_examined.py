"""Environments for plugins, as an examination sees them."""

from __future__ import annotations

import pytest
from tests.environments.known import MANIFEST, write_camel, write_environment

from agentrl.plugins.entries import core_version


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "environments"


def test_an_environment_is_listed_with_its_agents(examined, folder):
    write_camel(folder / "camel")
    result = examined("math", "model=no-such-model")
    (finding,) = [each for name, each in result.told.found_in if "environment" in each.figures]
    assert finding.text == f"environment camel: agentrl-core {core_version()}, agents camel-math"
    assert result.found("plugins") == []


@pytest.mark.parametrize(
    ("damage", "said", "fix"),
    [
        ("old", "environment camel has agentrl-core 0.0.1, and this is ", "agentrl env create camel --replace"),
        ("gone", "environment camel cannot be used: its interpreter ", "agentrl env create camel --replace"),
        ("begun", "environment camel is being made, or was never finished", "agentrl env create camel"),
    ],
)
def test_what_is_wrong_with_it_is_told_with_the_command_that_mends_it(plugin_findings, folder, damage, said, fix):
    write_environment(
        folder / "camel", core="0.0.1" if damage == "old" else None, manifest=None if damage == "begun" else MANIFEST
    )
    if damage == "gone":
        (folder / "camel/bin/python").unlink()
    (warning,) = plugin_findings()
    assert warning.level == "warning"
    assert said in warning.text
    assert warning.fix == fix


def test_an_interpreter_that_the_config_names_and_that_is_gone_is_a_problem(plugin_findings, folder):
    write_camel(folder / "camel")
    python = folder / "camel/bin/python"
    python.unlink()
    (problem,) = plugin_findings("camel-math", f"agent.python={python}")
    assert (problem.level, problem.exit_code, problem.blocks) == ("problem", 3, True)
    assert problem.fix == "agentrl env create camel --replace"
