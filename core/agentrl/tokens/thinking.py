"""Where a turn thinks: the marks of every family around it, opened by the policy or by its prompt."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["Marks", "Thinking"]

Marks = tuple[str, str]
"""What opens thinking, and what closes it."""

_USUAL: Marks = ("<think>", "</think>")
_OTHERS: tuple[Marks, ...] = (
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
)
_TAIL = 48
"""Ids that hold the header of a turn and a mark, however they are split."""


class Thinking:
    """Knows thinking by the marks that a model uses: ``<think>``, and whichever others its template writes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        template = str(vocabulary.chat_template or "")
        self._known = (_USUAL, *(marks for marks in _OTHERS if marks[0] in template))
        self._usual = [vocabulary.special_id(mark) for mark in _USUAL]
        self._openers = [vocabulary.special_id(opening) for opening, _ in self._known]

    def opened(self, prompt_ids: Sequence[int]) -> Marks | None:
        """The marks of the thinking that a prompt opens, which its completion goes on with."""
        tail = prompt_ids[-_TAIL:]
        if None not in self._openers and not any(token in tail for token in self._openers):
            return None  # Marks that are tokens are never written in others by a template: nothing has to be decoded.
        header = self._vocabulary.decode(tail).rstrip()
        return next((marks for marks in self._known if header.endswith(marks[0])), None)

    def split(self, completion_ids: list[int], prompt_ids: Sequence[int]) -> tuple[str, list[int]] | None:
        """A completion's thinking and the ids after it, none where it does not close; ``None`` where it begins with
        none."""
        text = self._vocabulary.decode(completion_ids)
        marks = self.opened(prompt_ids) or self._begun(text)
        if marks is None:
            return None
        thought, closed, _ = text.lstrip().removeprefix(marks[0]).partition(marks[1])
        return thought.strip(), self._after(completion_ids, marks[1]) if closed else []

    def present(self, completion_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> bool:
        """Whether a completion holds thinking, closed or not."""
        opening, closing = self._usual
        if self.opened(prompt_ids) is not None or opening in completion_ids or closing in completion_ids:
            return True
        known = self._known if None in self._usual else self._known[1:]
        text = self._vocabulary.decode(completion_ids) if known else ""
        return any(mark in text for marks in known for mark in marks)

    def _begun(self, text: str) -> Marks | None:
        return next((marks for marks in self._known if text.lstrip().startswith(marks[0])), None)

    def _after(self, ids: list[int], mark: str) -> list[int]:
        """The ids after the first ``mark`` in the text of ``ids``; what is left of one is encoded again."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            if mark in self._vocabulary.decode(ids[:middle]):
                high = middle
            else:
                low = middle + 1
        left = self._vocabulary.decode(ids[:low]).partition(mark)[2]
        return [*self._vocabulary.encode(left), *ids[low:]]
