"""The recipe of the model tiny: what it is shown, how that is recorded, and the tokenizer it gives."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from agentrl.tasks.arithmetic import Arithmetic, HeldOutArithmetic, is_held_out
from agentrl.tokens.renderer import Renderer
from agentrl_agents.build_tiny.__main__ import LESSONS, build, tokenizer_of
from agentrl_agents.build_tiny.demonstrations import DEMONSTRATORS, Demonstration
from agentrl_agents.build_tiny.recording import Recorder, Row
from agentrl_agents.build_tiny.teaching import Lesson, batch_loss

ALL_HELD_OUT = {task["question"] for task in HeldOutArithmetic(HeldOutArithmetic.Settings(size=1058))}


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_folder)


def shown(agent: str, well: float, count: int) -> list[Demonstration]:
    random = Random(1)
    return [DEMONSTRATORS[agent](random, well) for _ in range(count)]


@pytest.mark.parametrize("agent", DEMONSTRATORS)
def test_no_held_out_problem_is_ever_demonstrated(agent: str) -> None:
    questions = {demonstration.opening[-1]["content"] for demonstration in shown(agent, 0.5, 20_000)}
    assert len(questions) > 6_000
    assert not questions & ALL_HELD_OUT


def test_what_is_trained_was_never_held_out_either() -> None:
    trained = {task["question"] for task in Arithmetic(Arithmetic.Settings(size=7042))}
    assert not trained & ALL_HELD_OUT
    assert len(trained | ALL_HELD_OUT) == 90 * 90
    assert all(is_held_out(map(int, re.findall(r"\d+", question))) for question in ALL_HELD_OUT)


@pytest.mark.parametrize(("agent", "share"), [("math", 0.0), ("multi_turn_math", 0.0), ("calculator", 0.05)])
def test_what_is_done_badly_is_wrong(agent: str, share: float) -> None:
    right = [
        demonstration.turns[-1].endswith(f" {_answer(demonstration)}.") for demonstration in shown(agent, 0.0, 1_000)
    ]
    assert sum(right) / len(right) <= share


def test_what_the_tool_returns_is_copied_and_seldom_the_sum() -> None:
    demonstrations = shown("calculator", 1.0, 1_000)
    assert all(turns[2] == f"It is {turns[1]['content']}." for turns in (d.turns for d in demonstrations))
    assert sum(d.turns[1]["content"] == _answer(d) for d in demonstrations) < 50


def _answer(demonstration: Demonstration) -> str:
    return str(sum(map(int, re.findall(r"\d+", demonstration.opening[-1]["content"]))))


@pytest.mark.parametrize("agent", DEMONSTRATORS)
def test_a_recorded_row_is_the_chat_template_of_its_conversation(
    agent: str, tokenizer: PreTrainedTokenizerFast, tiny_renderer: Renderer
) -> None:
    recorder = Recorder(tokenizer, tiny_renderer, undone=0.5)
    for demonstration in shown(agent, 0.5, 30):
        row = recorder.record(demonstration, Random(2))
        turns = [_message(turn) for turn in demonstration.turns]
        prompt = tokenizer.apply_chat_template(
            [*demonstration.opening, *turns[:-1]], tools=demonstration.tools, tokenize=False, add_generation_prompt=True
        )
        assert tokenizer.decode(row.ids) == f"{prompt}{turns[-1]['content']}<|im_end|>"


@pytest.mark.parametrize("agent", DEMONSTRATORS)
def test_exactly_what_the_policy_writes_is_taught(
    agent: str, tokenizer: PreTrainedTokenizerFast, tiny_renderer: Renderer
) -> None:
    recorder = Recorder(tokenizer, tiny_renderer, undone=0.0)
    for demonstration in shown(agent, 0.5, 30):
        row = recorder.record(demonstration, Random(2))
        taught = tokenizer.decode([token for token, taught in zip(row.ids, row.taught, strict=True) if taught])
        assert taught == "".join(f"{turn}<|im_end|>" for turn in demonstration.turns if isinstance(turn, str))


def test_undone_merges_are_splits_that_encoding_would_not_give(
    tokenizer: PreTrainedTokenizerFast, tiny_renderer: Renderer
) -> None:
    demonstrations = shown("math", 1.0, 200)
    recorder, random = Recorder(tokenizer, tiny_renderer, undone=0.1), Random(3)
    rows = [recorder.record(demonstration, random) for demonstration in demonstrations]
    other = [tokenizer.encode(tokenizer.decode(row.ids), add_special_tokens=False) != row.ids for row in rows]
    assert 0.1 < sum(other) / len(other) < 0.9


def test_the_recipe_gives_the_committed_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    made = tokenizer_of(Random(0))
    assert made.get_vocab() == tokenizer.get_vocab()
    assert made.chat_template == tokenizer.chat_template


@pytest.mark.long
def test_the_recipe_repeats_bit_for_bit(tmp_path: Path) -> None:
    lessons = [Lesson(lesson.name, 2, lesson.pace, lesson.well, dict.fromkeys(lesson.rows, 4)) for lesson in LESSONS]
    for folder in (tmp_path / "one", tmp_path / "other"):
        build(folder, lessons)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 6


def _message(turn: str | dict[str, str]) -> dict[str, str]:
    return {"role": "assistant", "content": turn} if isinstance(turn, str) else turn


@pytest.mark.parametrize("agent", DEMONSTRATORS)
def test_a_shared_prefix_changes_nothing_about_the_loss(
    agent: str, tokenizer: PreTrainedTokenizerFast, tiny_renderer: Renderer, tiny_folder: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    recorder, random = Recorder(tokenizer, tiny_renderer, undone=0.1), Random(4)
    rows = [recorder.record(demonstration, random) for demonstration in shown(agent, 0.5, 6)]
    losses = [loss for row in rows for loss in _losses(model, row)]
    assert batch_loss(model, rows).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def _losses(model: Qwen3ForCausalLM, row: Row) -> list[float]:
    """The cross-entropy of each taught token, by a plain forward of one row."""
    ids = torch.tensor([row.ids])
    losses = functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    return [loss for loss, taught in zip(losses.tolist(), row.taught[1:], strict=True) if taught]
