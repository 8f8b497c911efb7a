"""The conformance suite of rewards."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

import pytest

from agentrl.errors import RewardError
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rollout.contract import EpisodeKey, EpisodeView
from agentrl.tasks import Task, load_tasks
from agentrl.testing.loop_thread import LoopThread
from agentrl.testing.parts import MISSING, PartName, as_part, failing_tests, required

__all__ = ["RewardConformance"]

ANSWERS: Mapping[str, Any] = {
    "a text": "It is 42.",
    "an empty text": "",
    "white space": " \n\t",
    "a very long text": "and then 12345, " * 5_000,
    "a very long number": "9" * 5_000,
    "other scripts": "答えは四十二 €، 🦀 \u202e42",
    "control characters": "\x00\x1b[2J",
    "half a surrogate pair": "It is \ud83e",
    "broken LaTeX": r"\boxed{\frac{1}{$$",
    "a word for nothing": "None",
    "false": False,
    "a number": 42,
    "a fraction": 0.5,
    "no number": float("nan"),
    "a list": ["42", None],
    "a dict": {"answer": "42", "steps": [1, 2]},
    "an empty dict": {},
}
"""Answers of agents, by a description. ``None`` is not among them: it rejects the episode, and nothing is scored."""

_VIEW = EpisodeView(EpisodeKey("train", 0, 0, 0), ())

Score = Callable[[Any, Task], float | None]


class RewardConformance:
    """Tests of one reward. Subclass it with a name that begins with ``Test``, and set ``reward``."""

    reward: ClassVar[PartName] = MISSING
    """Its name, or ``{"name": …}`` with its keys."""
    tasks: ClassVar[PartName] = "arithmetic"
    """The task set whose answers it scores; the first task is used, where ``right`` holds none."""
    right: ClassVar[Sequence[tuple[Any, Task]]] = ()
    """Answers that deserve more than any in ``wrong``, each with its task."""
    wrong: ClassVar[Sequence[tuple[Any, Task]]] = ()
    """Answers that deserve less than any in ``right``, each with its task."""
    timeout: ClassVar[float] = 10.0
    """Seconds that scoring one answer may take; the first may take a minute."""

    @pytest.fixture(scope="class")
    @classmethod
    def score(cls) -> Iterator[Score]:
        """Scores an answer to a task; ``None`` where the reward refuses it with a ``RewardError``."""
        with failing_tests():
            reward = _Watched(load_reward(Plugins(), as_part(required(cls, "reward"))))
        loop = LoopThread()
        deadlines = iter([60.0])

        def score(answer: Any, data: Task) -> float | None:
            deadline = max(next(deadlines, 0.0), cls.timeout)
            return loop.run(reward.score(answer, data), deadline_s=deadline, what=f"scoring {answer!r:.40}")

        yield score
        loop.close()

    @pytest.fixture
    def task(self) -> Task:
        """A task whose answers the reward can score."""
        found = self.right[0][1] if self.right else load_tasks(Plugins(), as_part(self.tasks))[0]
        return copy.deepcopy(found)

    def test_it_is_found_and_takes_its_keys(self, score: Score) -> None:
        assert callable(score)

    def test_an_answer_is_worth_a_number(self, score: Score, task: Task) -> None:
        answer = self.right[0][0] if self.right else "It is 42."
        assert score(answer, task) is not None, f"it refuses {answer!r:.80}, an answer to a task that it is made for"

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_any_answer_is_worth_a_number_or_is_refused(self, answer: str, score: Score, task: Task) -> None:
        score(ANSWERS[answer], task)

    def test_an_answer_is_worth_the_same_again(self, score: Score, task: Task) -> None:
        answers = [*self.right, *self.wrong] or [(answer, task) for answer in ("It is 42.", "", "No idea.")]
        for answer, data in answers:
            first, second = score(answer, data), score(answer, data)
            assert first == second, f"the answer {answer!r:.80} is worth {first}, and the next time {second}"

    def test_it_leaves_answer_and_task_alone(self, score: Score, task: Task) -> None:
        before = copy.deepcopy(task)
        answer = {"answer": "42", "steps": [1, 2]}
        score(answer, task)
        score("It is 42.", task)
        assert task == before, "it changed the task that it was given"
        assert answer == {"answer": "42", "steps": [1, 2]}, "it changed the answer that it was given"

    def test_right_answers_are_worth_more_than_wrong_ones(self, score: Score) -> None:
        if not (self.right and self.wrong):
            pytest.skip("no answers to compare in `right` and `wrong`")
        least = min(_worths(score, self.right), key=itemgetter(0))
        most = max(_worths(score, self.wrong), key=itemgetter(0))
        told = f"the right answer {least[1]!r:.80} is worth {least[0]}, and the wrong one {most[1]!r:.80} {most[0]}"
        assert least[0] > most[0], told


def _worths(score: Score, pairs: Sequence[tuple[Any, Task]]) -> list[tuple[float, Any]]:
    """The rewards of answers, each with its answer. Fails the test where one is refused."""
    worths = []
    for answer, data in pairs:
        worth = score(answer, data)
        assert worth is not None, f"it refuses {answer!r:.80}, an answer that it should tell from others"
        worths.append((worth, answer))
    return worths


class _Watched:
    """Calls a reward, and knows whether a ``RewardError`` was raised by the reward itself."""

    def __init__(self, reward: Callable[..., Any]) -> None:
        self._refusal: RewardError | None = None

        @functools.wraps(reward)  # So that it is offered what the reward itself takes.
        async def watched(*given: Any, **offered: Any) -> Any:
            try:
                returned = reward(*given, **offered)
                return await returned if inspect.isawaitable(returned) else returned
            except RewardError as error:
                self._refusal = error
                raise

        self._reward = watched

    async def score(self, answer: Any, data: Task) -> float | None:
        """Returns the reward of an answer; ``None`` where it is refused. Fails the test for anything else."""
        try:
            return await call_reward(self._reward, answer, data, _VIEW)
        except RewardError as error:
            if error is self._refusal:
                return None
            pytest.fail(f"no finite number and no RewardError of its own: {error}", pytrace=False)
