"""The page about scaling shows what its script prints."""

from __future__ import annotations

import torch
from tests.benchmarks.scaling import MODELS, STEPS, Costs, Gpu, Work, lines
from tests.snippets import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()


def test_its_tables_are_those_that_the_script_prints() -> None:
    """Of each model a few rows, since all of them take long: a unit cost that changes changes these too."""
    for model in MODELS:
        table = PAGE[PAGE.index(f"### {model.name}") :]
        for line in lines(Work(), Gpu(), Costs(), STEPS, models=[model], numbers=(1, 2)):
            assert not line or line in table
    rows = [line for line in PAGE if line.startswith("| 64 | ")]
    assert len(rows) == 2 * len(MODELS)


def test_its_models_have_as_many_parameters_as_their_configurations_say() -> None:
    for model in MODELS:
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model.config()))
        assert made.num_parameters() == model.total
        assert model.active <= model.total
