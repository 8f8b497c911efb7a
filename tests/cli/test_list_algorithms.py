"""``agentrl list-algorithms`` says of every preset what it is made of, where that comes from and when to use it."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner
from tests.algorithms.algorithms import build
from tests.plugins.installing import install

from agentrl.cli.algorithms import list_algorithms
from agentrl.cli.root import App
from agentrl.plugins import Plugins

OURS = ("grpo", "dr_grpo", "dapo", "rloo", "reinforce++", "ppo", "gspo", "cispo", "dppo", "distill", "sft")
NEEDED = {"distill": {"advantage": {"model": "x"}}}


def listed(*arguments):
    done = CliRunner().invoke(list_algorithms, arguments, obj=App(), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.fixture(scope="module")
def document():
    return json.loads(listed("--json"))


@pytest.mark.parametrize("name", OURS)
def test_every_preset_says_what_is_built(name, document):
    (said,) = (each for each in document["algorithms"] if each["name"] == name)
    preset = Plugins().get("algorithms", name)
    assert (said["use"], said["sources"], said["command"]) == (preset.use, list(preset.sources), preset.command)
    assert said["use"]
    assert said["sources"]
    parts = [preset.credit, preset.advantage, preset.normalisation, preset.correction, preset.objective, preset.critic]
    parts += [preset.filter] if isinstance(preset.filter, dict) else list(preset.filter)
    assert sorted(each["name"] for each in said["parts"]) == sorted(each["name"] for each in parts if each)
    assert all(each in parts for each in said["parts"])
    built, known = (
        build({"name": name, **NEEDED.get(name, {})}),
        {each["name"]: each["target"].rpartition(":")[2] for each in document["parts"]},
    )
    assert type(built.objective).__name__ == known[preset.objective["name"]]


def test_it_is_printed_without_importing_what_it_names():
    assert "dapo " in (text := listed())
    assert "objective.clip {clip_high: 0.28}" in text
    assert "    when: For long answers" in text
    assert "    sources: Yu et al. 2025, DAPO, arXiv:2503.14476" in text
    assert "    trained with by: agentrl sft" in text


def test_a_preset_made_of_another_shows_what_it_takes_over(tmp_path, monkeypatch):
    code = """
from dataclasses import replace

from agentrl.algorithms.presets import dapo

mine = replace(dapo, use="Always.", sources=["A paper, eq. 1"])
broken = make_it()
"""
    groups = {"agentrl.algorithms": {"mine": "my_presets:mine", "broken": "my_presets:broken"}}
    install(tmp_path, "agentrl-mine", groups, files={"my_presets.py": code})
    monkeypatch.syspath_prepend(tmp_path)
    made = {each["name"]: each for each in json.loads(listed("--json"))["algorithms"]}
    assert (made["mine"]["use"], made["mine"]["sources"]) == ("Always.", ["A paper, eq. 1"])
    assert made["mine"]["parts"] == made["dapo"]["parts"]
    assert made["broken"]["parts"] == []
    assert "my_presets" not in sys.modules
