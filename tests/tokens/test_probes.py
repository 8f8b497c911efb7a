"""What ends a turn, for the real templates of the families: whatever ends it is no part of what was said."""

from __future__ import annotations

import json
import re
from functools import lru_cache

import pytest
from tests.tokens.families import FAMILIES, tokenizer
from transformers import AutoTokenizer, GenerationConfig

from agentrl.errors import ConfigError
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

ASK = {"role": "user", "content": "What is 3 + 4?"}
SPOKEN = {
    "gpt-oss": "<|channel|>final<|message|>7",
    "deepseek-v3": "</think>7",
    "deepseek-r1": "</think>7",
    "glm-4.5": "\n<think></think>\n7",
}
"""How a turn that says 7 is written, where that is more than the text."""


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A family's renderer, loaded from its folder as a run does."""

    @lru_cache
    def load(name: str) -> Renderer:
        folder, tokens = tmp_path_factory.mktemp("model"), tokenizer(name)
        tokens.save_pretrained(folder)
        ends = FAMILIES[name].ends or (FAMILIES[name].eos,)
        GenerationConfig(eos_token_id=tokens.convert_tokens_to_ids(list(ends))).save_pretrained(folder)
        return load_renderer(AutoTokenizer.from_pretrained(folder))

    return load


def ends(name):
    family = FAMILIES[name]
    return sorted({family.eos, family.end, *family.ends})


CASES = [(name, end) for name in FAMILIES for end in ends(name)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_ends_with_eos_what_the_model_lists_and_what_its_template_writes(load, name):
    renderer = load(name)
    assert {*renderer.vocabulary.convert_tokens_to_ids(ends(name))} <= renderer.stop_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_template_writes_after_a_turn_ends_one_where_no_file_lists_it(name):
    renderer = load_renderer(tokenizer(name), "default")
    assert renderer.vocabulary.convert_tokens_to_ids(FAMILIES[name].end) in renderer.stop_ids


def test_what_a_turn_is_made_of_does_not_end_it():
    renderer = load_renderer(tokenizer("gpt-oss"), "default")
    inside = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>"]
    assert renderer.stop_ids.isdisjoint(renderer.vocabulary.convert_tokens_to_ids(inside))
    ends = ["<|return|>", "<|call|>"]
    assert renderer.stop_ids == {*renderer.vocabulary.convert_tokens_to_ids(ends)}


@pytest.mark.parametrize(("name", "end"), CASES)
def test_no_end_of_a_turn_reaches_its_content(load, name, end):
    renderer = load(name)
    ids = [*renderer.vocabulary.encode(SPOKEN.get(name, "7")), renderer.vocabulary.convert_tokens_to_ids(end)]
    message = renderer.parse(ids, None, renderer.render([ASK]))
    assert message == {"role": "assistant", "content": "7"}


@pytest.mark.parametrize(("name", "end"), CASES)
def test_the_next_prompt_holds_the_end_that_the_template_writes_and_no_other(load, name, end):
    renderer = load(name)
    prompt, more = renderer.render([ASK]), {"role": "user", "content": "And 5?"}
    ids = [*renderer.vocabulary.encode(SPOKEN.get(name, "7")), renderer.vocabulary.convert_tokens_to_ids(end)]
    message = renderer.parse(ids, None, prompt)
    whole = renderer.render([ASK, message, more])
    extended = renderer.extend(prompt, ids[: renderer.history_length(ids)], [more], history=[ASK, message])
    if not isinstance(extended, str):
        # Mistral's writes a blank before the text of a turn; the recorded turn stays as the policy said it.
        texts = [re.sub(" +", " ", renderer.vocabulary.decode(ids)) for ids in (extended, whole)]
        assert texts[0] == texts[1]
    template = tokenizer(name).apply_chat_template(
        [ASK, {"role": "assistant", "content": "7"}, more], tokenize=False, add_generation_prompt=True
    )
    assert whole == renderer.vocabulary.encode(template)


@pytest.mark.parametrize("template", [None, "{{ messages[-1].content }}"])
def test_a_renderer_by_name_repeats_only_the_end_that_it_writes_itself(make_tokenizer, template):
    renderer = load_renderer(make_tokenizer(template), "qwen3")
    said, more = renderer.vocabulary.encode("7"), [{"role": "user", "content": "And 5?"}]
    prompt, written = renderer.render([ASK]), set()
    for end in renderer.vocabulary.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]):
        ids = [*said, end]
        extended = renderer.extend(prompt, ids[: renderer.history_length(ids)], more)
        assert extended == renderer.extend(prompt, said, more)
        written.add(renderer.vocabulary.decode(extended))
    assert len(written) == 1
    assert "<|endoftext|>" not in written.pop()


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", [5, [5, 6], None])
def test_either_file_may_list_one_end_or_several(tmp_path, chat_tokenizer, file, value):
    chat_tokenizer.save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps({"eos_token_id": value, "model_type": "llama"}))
    own = load_renderer(chat_tokenizer, "default").stop_ids
    listed = {value} if isinstance(value, int) else set(value or ())
    assert load_renderer(AutoTokenizer.from_pretrained(tmp_path), "default").stop_ids == own | listed


def test_a_tokenizer_of_no_folder_reads_none(tmp_path, chat_tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert 5 not in load_renderer(chat_tokenizer).stop_ids


@pytest.mark.parametrize("text", ['{"eos_token_id": "<|im_end|>"}', '{"eos_token_id": [1, -3]}', "[]", "{"])
def test_a_file_that_lists_no_ids_is_refused_by_name(tmp_path, chat_tokenizer, text):
    chat_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        load_renderer(AutoTokenizer.from_pretrained(tmp_path))
