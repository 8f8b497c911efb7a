"""From demonstrations to token ids, as the gateway would have recorded them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerFast

from agentrl.tokens.renderer import Renderer
from agentrl_agents.build_tiny.demonstrations import Demonstration

__all__ = ["Recorder", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one conversation, and for each whether the policy is taught to write it."""

    ids: list[int]
    taught: list[bool]


class Recorder:
    """Renders prompts once and extends them turn by turn; what is written splits words in several ways."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, renderer: Renderer, undone: float) -> None:
        """Each merge of a written text is undone with probability ``undone``."""
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._parts = _parts(tokenizer)
        self._undone = undone
        self._prompts: dict[str, list[int]] = {}

    def record(self, demonstration: Demonstration, random: Random) -> Row:
        """The row of one demonstration."""
        prompt = self._prompt(demonstration)
        ids, taught = list(prompt), [False] * len(prompt)
        for turn in demonstration.turns:
            if isinstance(turn, str) or turn["role"] == "assistant":
                prompt, text = ids, turn if isinstance(turn, str) else turn["content"]
                ids = ids + self._written(text, random)
                taught += [isinstance(turn, str)] * (len(ids) - len(prompt))
            else:
                extended = self._renderer.extend(prompt, ids[len(prompt) :], [turn], demonstration.tools)
                assert isinstance(extended, list), extended
                taught += [False] * (len(extended) - len(ids))
                ids = extended
        return Row(ids, taught)

    def _prompt(self, demonstration: Demonstration) -> list[int]:
        key = json.dumps([demonstration.opening, demonstration.tools])
        if key not in self._prompts:
            self._prompts[key] = self._renderer.render(demonstration.opening, demonstration.tools)
        return self._prompts[key]

    def _written(self, text: str, random: Random) -> list[int]:
        canonical = self._tokenizer.encode(text, add_special_tokens=False)
        return [part for token in canonical for part in self._split(token, random)] + [self._tokenizer.eos_token_id]

    def _split(self, token: int, random: Random) -> list[int]:
        """The token, or its parts: the idea of BPE-dropout (Provilkov et al. 2020, section 3) on whole tokens."""
        parts = self._parts.get(token)
        if parts is None or random.random() >= self._undone:
            return [token]
        return [piece for part in parts for piece in self._split(part, random)]


def _parts(tokenizer: PreTrainedTokenizerFast) -> dict[int, tuple[int, int]]:
    """For each merged token the two that it was merged from."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    ids = model["vocab"]
    return {ids[left + right]: (ids[left], ids[right]) for left, right in reversed(model["merges"])}
