"""The families' models: they load from a folder as any model does, with the ends of turn of their family."""

from __future__ import annotations

import pytest
from tests.tokens.families import FAMILIES, model_folder, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

ASK = [{"role": "user", "content": "Hi é 🙂"}]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_of_a_family_is_whole_and_its_template_is_its_own(name):
    tokens, family = tokenizer(name), FAMILIES[name]
    for token in (*family.special, *family.marks, family.eos, family.end):
        assert tokens.encode(token, add_special_tokens=False)[-1] == tokens.convert_tokens_to_ids(token)
    text = tokens.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert "Hi é 🙂" in tokens.decode(tokens.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", ["qwen2.5", "phi-3.5"])
def test_a_folder_holds_model_tokenizer_template_and_ends_of_turn(name, tmp_path):
    folder, family = model_folder(name, tmp_path), FAMILIES[name]
    model, tokens = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokens.chat_template == family.template
    assert tokens.convert_ids_to_tokens(model.generation_config.eos_token_id) == list(family.ends)
    assert tokens.encode("12 é", add_special_tokens=False) == tokenizer(name).encode("12 é", add_special_tokens=False)
