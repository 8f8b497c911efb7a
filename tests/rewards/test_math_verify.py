"""math-verify off the main thread: mathematics is compared, and nothing can hang it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentrl.rewards.matching import MathVerify
from agentrl.rewards.verifier import Verifier


@pytest.fixture(scope="module")
def reward() -> MathVerify:
    return MathVerify(MathVerify.Settings(timeout=30))


def score(reward: MathVerify, answer: str, truth: str) -> float:
    return asyncio.run(reward(answer, {"answer": truth}))


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("It is 85.", "85", True),
        (r"so $\frac{1}{2}$", "1/2", True),
        ("the answer is 0.5", r"\frac{1}{2}", True),
        (r"\boxed{1+x^2}", "x^2+1", True),
        (r"$(1,2)$", "(1,2)", True),
        ("2", r"\frac{3}{2}", False),
        ("84", "85", False),
        ("", "85", False),
        ("85", "", False),
        ("line\nbreak 85\u2028", "85", True),
    ],
)
def test_answers_are_compared_as_mathematics(reward: MathVerify, answer: str, truth: str, right: bool) -> None:
    assert score(reward, answer, truth) == right


def test_many_episodes_are_scored_at_once(reward: MathVerify) -> None:
    async def all_of_them() -> list[float]:
        return await asyncio.gather(*(reward(str(n % 3), {"answer": "1"}) for n in range(30)))

    assert asyncio.run(all_of_them()) == [float(n % 3 == 1) for n in range(30)]


def test_it_works_on_any_thread(reward: MathVerify) -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(score(reward, "1/2", "0.5")))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_a_comparison_without_end_scores_nothing_and_harms_no_other() -> None:
    verifier = Verifier(timeout=30)
    assert verifier.equal("1", "1")
    process = verifier._process
    verifier._timeout = 0.05  # what the process itself would give up after is longer
    assert not verifier.equal("9**9**9**9", "$9^{9^{9^{9}}}$")
    assert process is not None
    assert process.poll() is not None
    verifier._timeout = 30
    assert verifier.equal("1", "1")


def test_the_process_ends_with_its_owner() -> None:
    verifier = Verifier(timeout=30)
    assert verifier.equal("2", "2")
    process = verifier._process
    del verifier
    assert process is not None
    assert process.poll() is not None
