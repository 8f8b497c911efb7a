"""What a run is made of, from its config: the model as its folder has it."""

from __future__ import annotations

import pytest
from tests.tokens.families import FAMILIES, model_folder
from transformers import AutoModelForCausalLM

from agentrl import load_config
from agentrl.learner.folder import save_model
from agentrl.plugins import Plugins
from agentrl.tokens.selection import load_renderer
from agentrl.training.parts import resolve_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder("qwen2.5", tmp_path_factory.mktemp("model"))


def test_turns_of_a_run_end_as_the_models_files_list(folder):
    parts = resolve_parts(load_config(None, f"model.name={folder}", "agent.name=math"), Plugins())
    ends = parts.renderer.vocabulary.convert_tokens_to_ids(list(FAMILIES["qwen2.5"].ends))
    assert parts.renderer.stop_ids == {*ends}
    assert len(ends) == 2


def test_turns_of_a_checkpoint_end_as_those_of_its_model(folder, tmp_path):
    save_model(AutoModelForCausalLM.from_pretrained(folder), folder, tmp_path / "saved")
    assert load_renderer(tmp_path / "saved").stop_ids == load_renderer(folder).stop_ids
