"""The tokenizer of `tiny`: byte-level BPE with real merges, and the tokens that Qwen3's template needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentrl_agents.build_tiny.demonstrations import Demonstration

__all__ = ["train_tokenizer"]

_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_MARKS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
_WORDS = r" ?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ZEROS = " ".join(f"0{digit}" for digit in range(10))


def train_tokenizer(
    demonstrations: Iterable[Demonstration], template: str, vocabulary: int, context: int
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocabulary`` tokens, trained on the text of ``demonstrations``."""
    bare = _wrapped(Tokenizer(models.BPE()), chat_template=template)
    tokenizer = _untrained()
    tokenizer.train_from_iterator(_pieces(bare, demonstrations), _trainer(vocabulary))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _MARKS])
    end, padding = _CONTROL[-1], _CONTROL[0]
    return _wrapped(tokenizer, chat_template=template, eos_token=end, pad_token=padding, model_max_length=context)


def _wrapped(tokenizer: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)  # type: ignore[no-untyped-call]


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _trainer(vocabulary: int) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocabulary - len(_CONTROL) - len(_MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _pieces(bare: PreTrainedTokenizerFast, demonstrations: Iterable[Demonstration]) -> Iterator[str]:
    """The text between special tokens, without its numbers.

    A model this small adds digit by digit; of the digit pairs only those that begin with a zero are
    merged, so that a sum such as 105 has more than one split.
    """
    marks = "|".join(map(re.escape, [*_CONTROL, *_MARKS]))
    for demonstration in demonstrations:
        tools: Any = demonstration.tools
        turns = [
            {"role": "assistant", "content": turn} if isinstance(turn, str) else turn for turn in demonstration.turns
        ]
        text = bare.apply_chat_template([*demonstration.opening, *turns], tools=tools, tokenize=False)
        yield from re.split(marks, re.sub(r"\d+", "", str(text)))
        yield _ZEROS
