"""The model tiny as a user meets it: small, of Qwen3's form, able, and bad at what it will be trained for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from agentrl import Trainer, load_config, open_run
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import Summary
from agentrl.tokens.renderer import Renderer

AGENTS = ("math", "multi_turn_math", "calculator")
MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"]
MARKS += ["<tool_response>", "</tool_response>", "<think>", "</think>"]


def test_the_folder_is_at_most_two_megabytes(tiny_folder: Path) -> None:
    assert sum(path.stat().st_size for path in tiny_folder.iterdir()) <= 2_000_000


def test_it_is_a_qwen3_with_an_output_layer_of_its_own(tiny_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert isinstance(model, Qwen3ForCausalLM)
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_its_tokenizer_holds_what_qwen3_needs_and_merges_words_and_digits(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert [tokenizer.tokenize(mark) for mark in MARKS] == [[mark] for mark in MARKS]
    assert tokenizer.tokenize("Carefully 105") == ["Carefully", "Ġ", "1", "05"]
    assert tokenizer.decode(tokenizer.encode("Ünïcödé 数学 🙂\n")) == "Ünïcödé 数学 🙂\n"
    assert tokenizer.eos_token == "<|im_end|>"


def test_the_renderer_of_qwen3_reproduces_its_template_and_extends_every_turn(tiny_renderer: Renderer) -> None:
    assert (tiny_renderer.name, tiny_renderer.warning) == ("qwen3", None)


@dataclass(frozen=True)
class Start:
    """How an agent fares with the model as it comes, on the quickstart's held-out tasks."""

    summary: Summary
    sampled: list[Episode]


@pytest.fixture(scope="module", params=AGENTS)
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("runs")
    config = load_config(None, f"run.dir={folder}", "run.name=start", "training.steps=0", agent=request.param)
    with Trainer(config) as trainer:
        summary = trainer.train()
    return Start(summary, list(open_run(folder / "start").load_episodes(phase="eval")))


def test_it_is_bad_greedily_and_succeeds_now_and_then_when_sampled(start: Start) -> None:
    assert start.summary.reward_before_greedy <= 0.5
    assert 0.05 <= start.summary.reward_before <= 0.4


def test_decoding_and_encoding_again_would_change_what_it_sampled(start: Start, tiny_renderer: Renderer) -> None:
    vocabulary = tiny_renderer.vocabulary
    completions = [
        [list(span.ids) for span in episode.tree.spans if span.sampled is not None] for episode in start.sampled
    ]
    changed = [any(vocabulary.encode(vocabulary.decode(ids)) != ids for ids in episode) for episode in completions]
    assert len(changed) == 128
    assert sum(changed) / len(changed) >= 0.01
