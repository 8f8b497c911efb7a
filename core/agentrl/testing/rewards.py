"""What every reward has to hold to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from agentrl.errors import RewardError
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rollout.episode import EpisodeKey, EpisodeView
from agentrl.tasks import load_tasks
from agentrl.testing.looping import LoopThread
from agentrl.testing.parts import MISSING, PartName, as_part, given

__all__ = ["RewardConformance"]

_VIEW = EpisodeView(EpisodeKey("train", 0, 0, 0), ())

ANSWERS: Mapping[str, Any] = {
    "a text": "It is 42.",
    "an empty text": "",
    "white space": " \n\t",
    "a very long text": "and then 12345, " * 10_000,
    "a long number": "9" * 5_000,
    "other scripts": "答えは四十二 €، 🦀 \u202e42",
    "control characters": "\x00\x1b[2J\ud800",
    "broken LaTeX": r"\boxed{\frac{1}{$$",
    "the word None": "None",
    "false": False,
    "a number": 42,
    "a fraction": 0.5,
    "no number": float("nan"),
    "a list": ["42", None],
    "a dict": {"answer": "42", "steps": [1, 2]},
    "an empty dict": {},
}


class RewardConformance:
    """Tests of one reward. Subclass it with a name that begins with ``Test``, and set ``reward``."""

    reward: ClassVar[PartName] = MISSING
    """Its name, or ``{"name": …}`` with its keys."""
    tasks: ClassVar[PartName] = "arithmetic"
    """Tasks whose answers it scores, of which the first is used."""
    right: ClassVar[Sequence[tuple[Any, dict[str, Any]]]] = ()
    """Answers that deserve more than any in ``wrong``, each with its task."""
    wrong: ClassVar[Sequence[tuple[Any, dict[str, Any]]]] = ()
    timeout: ClassVar[float] = 10.0
    """Seconds that one answer may take."""

    @pytest.fixture(scope="class")
    @classmethod
    def score(cls) -> Iterator[Callable[[Any, Mapping[str, Any]], float]]:
        """Scores an answer to a task."""
        reward = load_reward(Plugins(), as_part(given(cls, "reward")))
        loop = LoopThread()

        def score(answer: Any, data: Mapping[str, Any]) -> float:
            scoring = call_reward(reward, answer, data, _VIEW)
            return loop.run(scoring, deadline_s=cls.timeout, what=f"scoring {answer!r:.40}")

        yield score
        loop.close()

    @pytest.fixture(scope="class")
    @classmethod
    def task(cls) -> dict[str, Any]:
        """A task that it can score."""
        return cls.right[0][1] if cls.right else load_tasks(Plugins(), as_part(cls.tasks))[0]

    def test_its_name_means_a_reward(self, score: Callable[..., float]) -> None:
        assert callable(score)

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_any_answer_is_a_finite_number_or_a_reward_error(
        self, answer: str, score: Callable[..., float], task: dict[str, Any]
    ) -> None:
        try:
            reward = score(ANSWERS[answer], copy.deepcopy(task))
        except RewardError as error:
            if error.__cause__ is not None:  # Its own code raised something else.
                pytest.fail(f"it raised instead of scoring: {error}", pytrace=False)
        else:
            assert math.isfinite(reward)

    def test_an_answer_is_worth_the_same_again(self, score: Callable[..., float], task: dict[str, Any]) -> None:
        answers = [answer for answer, _ in self.right] or ["It is 42."]
        for answer in answers:
            assert score(answer, task) == score(answer, task), f"the answer {answer!r:.80} is worth something else"

    def test_it_leaves_the_task_alone(self, score: Callable[..., float], task: dict[str, Any]) -> None:
        before = copy.deepcopy(task)
        score("It is 42.", task)
        assert task == before, "it changed the task that it was given"

    def test_right_answers_are_worth_more_than_wrong_ones(self, score: Callable[..., float]) -> None:
        if not self.right or not self.wrong:
            pytest.skip("no answers in `right` and `wrong` to compare")
        least = min(score(*pair) for pair in self.right)
        most = max(score(*pair) for pair in self.wrong)
        assert least > most, f"a right answer is worth {least}, and a wrong one {most}"
