"""Whether a conversation keeps its token ids from turn to turn: one is rendered as an agent would have it grow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentrl.tokens.probes import TOOLS
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.template import ChatTemplate, Message, Tools

__all__ = ["Turn", "walk"]

_SHOWN_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Turn:
    """One continuation: what the agent added after a turn of the assistant, and what became of the ids before it."""

    fork: str | None
    """Why the prompt had to be rendered anew; ``None`` where it extends the ids that were recorded."""
    rewritten: tuple[str, str] | None
    """What the template had written at the first place that it changed, and what it writes there now."""
    tokens: int
    """Length of the prompt."""


def _conversation(thinking: bool, tools: bool) -> list[Message]:
    """Questions and answers; with ``tools`` there are calls and their results between them.

    The assistant thinks in every turn, or in none.
    """
    messages: list[Message] = [{"role": "system", "content": "Use the calculator. Be brief."}]
    for number, (left, right) in enumerate([(12, 34), (408, 2)]):
        call = {"name": "calculate", "arguments": json.dumps({"expression": f"{left} * {right}", "exact": True})}
        messages += [
            {"role": "user", "content": f"What is {left} * {right}?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": f"c{number}", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": f"c{number}", "name": "calculate", "content": str(left * right)},
            {"role": "assistant", "content": f"It is {left * right}."},
        ]
    messages.append({"role": "user", "content": "Thanks. And the sum of both?"})
    if not tools:
        messages = [m for m in messages if m["role"] != "tool" and "tool_calls" not in m]
    if not thinking:
        return messages
    return [m | {"reasoning_content": "Let me see."} if m["role"] == "assistant" else m for m in messages]


def walk(renderer: Renderer, template: ChatTemplate, *, thinking: bool = False, tools: bool = True) -> list[Turn]:
    """Every continuation of such a conversation. Raises ``GatewayError`` where the template refuses it."""
    return list(_Walk(renderer, template, thinking, TOOLS if tools else None).turns(_conversation(thinking, tools)))


@dataclass(frozen=True, slots=True)
class _Walk:
    renderer: Renderer
    template: ChatTemplate
    thinking: bool
    tools: Tools | None

    def turns(self, messages: Sequence[Message]) -> Iterator[Turn]:
        spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        prompt = self.renderer.render(messages[: spoken[0]], self.tools)
        for index, following in zip(spoken, [*spoken[1:], len(messages)], strict=True):
            anew = self.renderer.render(messages[:following], self.tools)
            completion = self._completion(messages[: index + 1], prompt, anew)
            new = messages[index + 1 : following]
            extended = self.renderer.extend(prompt, completion, new, self.tools, thinking=self.thinking)
            fork = extended if isinstance(extended, str) else None
            rewritten = self._rewritten([*prompt, *completion], self.template.render(messages[:following], self.tools))
            prompt = anew if isinstance(extended, str) else extended
            yield Turn(fork, rewritten, len(prompt))

    def _completion(self, until: Sequence[Message], prompt: Sequence[int], anew: Sequence[int]) -> list[int]:
        """The last of the messages ``until`` as the policy samples it after ``prompt``, its end included.

        Some templates write the last turn in another way than one that is followed by others; what thinks is
        as when it was last.
        """
        alone = self.template.render(until, self.tools, prompt=False)
        candidates = [alone] if self.thinking else [anew, alone]
        written = next((ids for ids in candidates if list(ids[: len(prompt)]) == list(prompt)), alone)
        ends = (place for place in range(len(prompt), len(written)) if written[place] in self.renderer.stop_ids)
        return list(written[len(prompt) : next(ends, len(written) - 1) + 1])

    def _rewritten(self, recorded: Sequence[int], anew: Sequence[int]) -> tuple[str, str] | None:
        pairs = zip(recorded, anew, strict=False)
        same = next((place for place, (old, new) in enumerate(pairs) if old != new), min(len(recorded), len(anew)))
        if same == len(recorded):
            return None
        shown = slice(same, same + _SHOWN_TOKENS)
        return self.renderer.vocabulary.decode(recorded[shown]), self.renderer.vocabulary.decode(anew[shown])
