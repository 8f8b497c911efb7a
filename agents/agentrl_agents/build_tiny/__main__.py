"""The seeded recipe of `tiny`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agentrl.tokens.selection import load_renderer
from agentrl_agents.build_tiny.demonstrations import DEMONSTRATORS
from agentrl_agents.build_tiny.recording import Recorder, Row
from agentrl_agents.build_tiny.teaching import Lesson, teach
from agentrl_agents.build_tiny.tokenizer import train_tokenizer
from agentrl_agents.models import TINY

SEED = 0
CONTEXT = 1024
LESSONS = (
    Lesson("the sum", 300, pace=1.0, well=1.0, rows={"math": 64}),
    Lesson("every skill", 700, pace=0.7, well=1.0, rows={"math": 32, "multi_turn_math": 32, "calculator": 64}),
    Lesson("the faults", 300, pace=0.3, well=0.2, rows={"math": 32, "multi_turn_math": 48, "calculator": 64}),
)


def build(folder: Path, lessons: Sequence[Lesson] = LESSONS) -> None:
    """Write the model to ``folder``; on one machine, always the same."""
    random = Random(SEED)
    torch.manual_seed(SEED)
    tokenizer = tokenizer_of(random)
    recorder = Recorder(tokenizer, load_renderer(tokenizer), undone=0.06)

    def draw(agent: str, well: float) -> Row:
        return recorder.record(DEMONSTRATORS[agent](random, well), random)

    model = Qwen3ForCausalLM(_config(tokenizer))
    teach(model, lessons, draw)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tokenizer_of(random: Random) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on demonstrations of every agent, done well and done badly."""
    shown = [show(random, well) for _ in range(200) for show in DEMONSTRATORS.values() for well in (0.0, 1.0)]
    return train_tokenizer(shown, (TINY / "chat_template.jinja").read_text(), vocabulary=768, context=CONTEXT)


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else TINY)
