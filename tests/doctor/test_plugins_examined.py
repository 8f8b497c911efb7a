"""Plugins that cannot be used, by the ways in which that happens, and what it means for training."""

from __future__ import annotations

import pytest
from tests.plugins.installing import install

MATH = "from agentrl_agents.math import MathAgent\n"


def test_a_plugin_that_does_not_import_is_a_warning_while_nobody_needs_it(examined, site):
    install(site, "agentrl-lost", {"agentrl.agents": {"lost": "lost_mod:Agent"}})
    (site / "lost_mod.py").write_text("import no_such_framework\n")
    (warning,) = (result := examined("math")).found("plugins")
    assert warning.level == "warning"
    assert "lost (agentrl-lost 1.0): importing lost_mod raised ModuleNotFoundError" in warning.text
    assert warning.fix == "update agentrl-lost, or leave it out with -p no:lost"
    assert result.diagnosis.ready


def test_it_is_a_problem_where_the_config_names_it(examined, site):
    install(site, "agentrl-lost", {"agentrl.agents": {"lost": "lost_mod:Agent"}})
    (site / "lost_mod.py").write_text("import no_such_framework\n")
    result = examined("lost")
    assert "no_such_framework" in result.only("problem", "plugins").text
    assert result.diagnosis.exit_code == 3
    assert result.levels()["config"] == {"skipped"}


@pytest.mark.parametrize(("agent", "level", "code"), [("math", "warning", 0), ("twice", "problem", 3)])
def test_two_that_claim_a_name_are_told_apart(plugin_findings, site, agent, level, code):
    for name in ("agentrl-one", "agentrl-two"):
        install(site, name, {"agentrl.agents": {"twice": "twice_mod:MathAgent"}}, files={"twice_mod.py": MATH})
    (finding,) = plugin_findings(agent)
    assert (finding.level, finding.exit_code) == (level, code)
    assert finding.text == "agent twice is claimed by agentrl-one 1.0 and agentrl-two 1.0"
    assert finding.fix.endswith("write agentrl-one/twice or agentrl-two/twice")


def test_the_name_with_its_distribution_has_no_conflict(plugin_findings, site):
    for name in ("agentrl-one", "agentrl-two"):
        install(site, name, {"agentrl.agents": {"twice": "twice_mod:MathAgent"}}, files={"twice_mod.py": MATH})
    assert plugin_findings("agentrl-one/twice")[0].level == "warning"


@pytest.mark.parametrize(
    ("requires", "said", "fix"),
    [
        ("no-such-framework>=2", "needs no-such-framework>=2, which is not installed", "no-such-framework>=2"),
        ("click<1", "needs click<1 and click ", "click<1"),
    ],
)
def test_requirements_that_are_not_met_are_told_with_the_way_out(plugin_findings, site, requires, said, fix):
    files = {"needy_mod.py": MATH}
    install(
        site, "agentrl-needy", {"agentrl.agents": {"needy": "needy_mod:MathAgent"}}, requires=(requires,), files=files
    )
    (problem,) = plugin_findings("needy")
    assert (problem.level, problem.exit_code, problem.blocks) == ("problem", 3, False)
    assert problem.text.startswith(f"agentrl-needy {said}")
    assert problem.fix.startswith(f"pip install '{fix}', or keep agentrl-needy apart: agentrl env create needy")


def test_what_a_requirement_needs_in_turn_is_a_warning(plugin_findings, site):
    install(site, "framework", {}, version="3.0", requires=("pydantic<2", "colour; extra == 'all'"))
    requires = ("framework>=2", "agentrl-core>=0.1,<99", "unknown; python_version < '3'")
    files = {"deep_mod.py": MATH}
    install(site, "agentrl-deep", {"agentrl.agents": {"deep": "deep_mod:MathAgent"}}, requires=requires, files=files)
    (warning,) = plugin_findings("deep")
    assert warning.level == "warning"
    assert warning.text.startswith("framework needs pydantic<2 and pydantic ")


def test_a_plugin_for_another_core_is_left_out(plugin_findings, site):
    requires = ("agentrl-core>=99",)
    install(site, "agentrl-new", {"agentrl.agents": {"new": "new_mod:Agent"}}, requires=requires)
    (warning,) = plugin_findings()
    assert "it needs agentrl-core>=99 and this is " in warning.text
    assert plugin_findings("new")[0].level == "problem"


def test_what_is_disabled_is_named(examined, site):
    install(site, "agentrl-lost", {"agentrl.agents": {"lost": "lost_mod:Agent"}})
    result = examined("math", disabled=("lost",))
    assert result.found("plugins") == []
    assert "agent lost (agentrl-lost 1.0) is disabled by -p no:lost" in [
        note.text for note in result.diagnosis.of_level("note")
    ]


def test_a_package_that_training_needs_in_another_version_is_a_problem(examined, site):
    install(site, "transformers", {}, version="4.40.0")
    problem = examined("math").only("problem", "versions")
    assert problem.text == "agentrl-core needs transformers>=5.0 and transformers 4.40.0 is installed"
    assert problem.fix == "pip install 'transformers>=5.0'"
