"""Whether a conversation keeps its token ids from turn to turn: one is rendered as an agent would have it grow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentrl.tokens.probes import TOOLS
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.template import ChatTemplate, Message

__all__ = ["Turn", "conversation", "walk"]

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


def conversation(*, thinking: bool) -> list[Message]:
    """Questions, tool calls, their results and answers; the assistant thinks in every turn, or in none."""
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
    if not thinking:
        return messages
    return [m | {"reasoning_content": "Let me see."} if m["role"] == "assistant" else m for m in messages]


def walk(renderer: Renderer, template: ChatTemplate, messages: Sequence[Message], *, thinking: bool) -> Iterator[Turn]:
    """Every continuation of the conversation ``messages``.

    Raises ``GatewayError`` where the template refuses them.
    """
    spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    prompt = renderer.render(messages[: spoken[0]], TOOLS)
    for index, following in zip(spoken, [*spoken[1:], len(messages)], strict=True):
        before, turn, after = messages[:index], messages[index], messages[index + 1 : following]
        anew = renderer.render(messages[:following], TOOLS)
        recorded = [*prompt, *_completion(renderer, template, [*before, turn], prompt, anew, thinking=thinking)]
        extended = renderer.extend(prompt, recorded[len(prompt) :], after, TOOLS, thinking=thinking)
        fork = extended if isinstance(extended, str) else None
        prompt = anew if isinstance(extended, str) else extended
        yield Turn(fork, _rewritten(renderer, recorded, template.render(messages[:following], TOOLS)), len(prompt))


def _completion(
    renderer: Renderer,
    template: ChatTemplate,
    until: Sequence[Message],
    prompt: Sequence[int],
    anew: Sequence[int],
    *,
    thinking: bool,
) -> list[int]:
    """The last of the messages ``until`` as the policy samples it after ``prompt``, its end included.

    Some templates write the last turn in another way than one that is followed by others; what thinks is
    as when it was last.
    """
    alone = template.render(until, TOOLS, prompt=False)
    written = next(
        (ids for ids in ([alone] if thinking else [anew, alone]) if list(ids[: len(prompt)]) == list(prompt)), alone
    )
    ends = (place for place in range(len(prompt), len(written)) if written[place] in renderer.stop_ids)
    return list(written[len(prompt) : next(ends, len(written) - 1) + 1])


def _rewritten(renderer: Renderer, recorded: Sequence[int], anew: Sequence[int]) -> tuple[str, str] | None:
    pairs = zip(recorded, anew, strict=False)
    same = next((place for place, (old, new) in enumerate(pairs) if old != new), min(len(recorded), len(anew)))
    if same == len(recorded):
        return None
    shown = slice(same, same + _SHOWN_TOKENS)
    return renderer.vocabulary.decode(recorded[shown]), renderer.vocabulary.decode(anew[shown])
