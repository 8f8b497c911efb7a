"""The turns of an episode as a page shows them: laid out, and cut where they are long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from markupsafe import Markup

from agentrl.errors import ConfigError
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode
from agentrl.view.conversation import Message, Turn, conversation, sections
from agentrl.view.markup import markdown, pretty_json, visible

__all__ = [
    "FOLDED",
    "LONGEST_PART",
    "TURNS",
    "Reading",
    "ShownCall",
    "ShownText",
    "ShownTurn",
    "shown_text",
    "text_of_part",
]

TURNS = 60
"""Turns that are shown at once."""
FOLDED = 6_000
"""Characters of a text that are shown before it is asked for whole."""
LONGEST_PART = 200_000
"""Characters of a text that are shown at once where it is asked for."""


@dataclass(frozen=True, slots=True)
class ShownText:
    """A text, or its beginning."""

    html: Markup
    part: str
    """By which the whole text is asked for."""
    left: int = 0
    """How many of its characters are not shown."""
    is_plain: bool = True
    """Whether its lines are to stay as they are."""


@dataclass(frozen=True, slots=True)
class ShownCall:
    """A call of a tool."""

    name: str
    id: str
    arguments: ShownText
    is_json: bool


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """A message with what the page says of it."""

    number: int
    """From 0, among the turns of the episode in the order in which they are shown."""
    role: str
    name: str
    branch: str
    """Where the conversation forks or another one begins, in words; empty where the turn follows the one before."""
    call: Call | None
    """The call whose answer it is."""
    ordinal: int | None
    """The index of that call."""
    reward: float | None
    """The reward of that call alone, where single calls were rewarded."""
    text: ShownText | None
    thinking: ShownText | None
    calls: tuple[ShownCall, ...]
    other: ShownText | None
    answers: str


class Reading:
    """The turns of one episode, in the order in which a person reads them."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._turns = [*_ordered(episode)]

    @property
    def count(self) -> int:
        """How many turns there are."""
        return len(self._turns)

    def turns(self, start: int, count: int, *, is_written: bool) -> list[ShownTurn]:
        """At most ``count`` turns from number ``start`` on; ``is_written`` leaves Markdown and LaTeX as they are."""
        chosen = islice(enumerate(self._turns), start, start + count)
        return [self._shown(number, turn, branch, is_written) for number, (turn, branch) in chosen]

    def _shown(self, number: int, turn: Turn, branch: str, is_written: bool) -> ShownTurn:
        message = turn.message
        call = None if turn.call is None else self._episode.calls[turn.call]
        is_tool = message.role not in ("assistant", "user", "system", "developer")
        return ShownTurn(
            number=number,
            role=message.role,
            name=message.name,
            branch=branch,
            call=call,
            ordinal=turn.call,
            reward=None if call is None else self._episode.call_rewards.get(call.id),
            text=shown_text(message.text, f"{number}.text", is_plain=is_written or is_tool, is_json=is_tool),
            thinking=shown_text(message.thinking, f"{number}.thinking", is_plain=is_written),
            calls=tuple(_called(message, number)),
            other=shown_text(message.other, f"{number}.other", is_plain=True, is_json=True),
            answers=message.answers,
        )


def text_of_part(episode: Episode, part: str) -> str:
    """The whole text that ``ShownText.part`` names. Raises ``ConfigError`` where there is none."""
    number, _, name = part.partition(".")
    if number == "task" or number == "answer":
        return json.dumps(episode.data if number == "task" else episode.answer, ensure_ascii=False, indent=2)
    turns = [*_ordered(episode)]
    if number.isascii() and number.isdigit() and int(number) < len(turns):
        message = turns[int(number)][0].message
        called = {f"call{index}": call.arguments for index, call in enumerate(message.calls)}
        texts = {"text": message.text, "thinking": message.thinking, "other": message.other, **called}
        if name in texts:
            return pretty_json(texts[name]) or texts[name] if name not in ("text", "thinking") else texts[name]
    raise ConfigError(f"the episode {episode.key} has no part {part!r}", fix="follow a link of its page")


def _ordered(episode: Episode) -> Iterator[tuple[Turn, str]]:
    """Every turn, and where its branch begins."""
    found = sections(conversation(episode.calls))
    ends: list[int] = []
    count = 0
    for section in found:
        branch = ""
        if section.of > 1 and section.after is None:
            branch = f"conversation {section.place} of {section.of}"
        elif section.after is not None:
            branch = f"branch {section.place} of {section.of} after message {ends[section.after]}"
        for turn in section.turns:
            yield turn, branch
            branch = ""
            count += 1
        ends.append(count)


def _called(message: Message, number: int) -> Iterator[ShownCall]:
    for index, call in enumerate(message.calls):
        is_json = pretty_json(call.arguments) is not None
        shown = shown_text(call.arguments, f"{number}.call{index}", is_plain=True, is_json=True)
        yield ShownCall(call.name, call.id, shown or ShownText(Markup(""), f"{number}.call{index}"), is_json)


def shown_text(text: str, part: str, *, is_plain: bool, is_json: bool = False, most: int = FOLDED) -> ShownText | None:
    """``text``, or its first ``most`` characters, as it is shown; ``None`` where there is none.

    ``is_plain`` leaves Markdown as it is, and with ``is_json`` JSON gets a line for each member.
    """
    if not text:
        return None
    if is_json and (pretty := pretty_json(text)) is not None:
        text = pretty
    shown, left = text[:most], max(0, len(text) - most)
    return ShownText(visible(shown) if is_plain else markdown(shown), part, left, is_plain)
