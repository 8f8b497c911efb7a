"""What went wrong in episodes, counted by reason."""

from __future__ import annotations

import pytest

from agentrl.gateway.contract import Call, Replacement
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.tally import Reasons, Tally

KEY = EpisodeKey("train", 1, 2, 3)


def call(finish="stop", **fields):
    return Call("c", None, {}, {}, finish, 10, 128, **fields)


def replaced(rule):
    return (Replacement(rule, 0, 0, "a", "b"),)


def failed(number):
    return Failure("agent", f"ValueError: answer {number}", "ValueError at x.py:1")


UNEVEN = {
    "failed": (
        [Episode(KEY, {}, "failed", None, failure=failed(number)) for number in range(2)],
        "2 of 2 episodes failed; commonest: 2x agent: ValueError: answer 0 [train-1-2-3]",
    ),
    "rejected": (
        [Episode(KEY, {}, "rejected", None)],
        "1 of 1 episodes were rejected; commonest: 1x the agent returned None [train-1-2-3]",
    ),
    "mistaken": (
        [
            Episode(KEY, {}, "rewarded", 0.0, mistake=f"no tool {name}", mistake_fingerprint="no tool" * (name != "b"))
            for name in "abc"
        ],
        "3 of 3 episodes ended with a mistake of the policy; commonest: 2x no tool a [train-1-2-3]",
    ),
    "limited": (
        [Episode(KEY, {}, "rewarded", 0.0, mistake="turn limit: none left"), Episode(KEY, {}, "rewarded", 1.0)],
        "in 1 of 2 episodes the policy ran into a limit; commonest: 1x turn limit: none left [train-1-2-3]",
    ),
    "retried": (
        [Episode(KEY, {}, "rewarded", 1.0, setbacks=(Failure("backend", "lost 1", "lost"),) * 4)],
        "4 failed calls or attempts were tried again; commonest: 4x backend: lost 1 [train-1-2-3]",
    ),
    "truncated": (
        [Episode(KEY, {}, "rewarded", 1.0, calls=(call("length"), call(), call("length")))],
        "2 completions were cut at their limit of tokens; commonest: 2x after 128 tokens [train-1-2-3]",
    ),
    "undelivered": (
        [Episode(KEY, {}, "rewarded", 1.0, calls=(call(delivered=False), call()))],
        "1 completion could not be delivered; commonest: 1x the agent's client had gone [train-1-2-3]",
    ),
    "overridden": (
        [Episode(KEY, {}, "rewarded", 1.0, calls=(call(overridden=("seed", "top_p")),))],
        "1 call was changed by rollout.override; commonest: 1x seed, top_p [train-1-2-3]",
    ),
    "unmet": (
        [Episode(KEY, {}, "rewarded", 1.0, calls=(call(unmet=("strict",)),))],
        "1 call did without something that it asked for; commonest: 1x strict [train-1-2-3]",
    ),
    "normalised": (
        [
            Episode(
                KEY, {}, "rewarded", 1.0, calls=(call(normalised=(*replaced("times"), *replaced("uuids"))), call()) * 2
            ),
            Episode(KEY, {}, "rewarded", 1.0, calls=(call(normalised=replaced("uuids") * 2),)),
        ],
        "3 calls had texts of the system changed by gateway.normalise; commonest: 2x times, uuids [train-1-2-3]",
    ),
    "control_tokens": (
        [Episode(KEY, {}, "rewarded", 1.0, calls=(call(control_tokens=("<|im_end|>", "</s>")),))],
        "1 call held texts that the model reads as control tokens (model.control_tokens=plain); commonest: 1x "
        "<|im_end|>, </s> [train-1-2-3]",
    ),
}


def test_one_is_told_in_the_singular_and_more_in_the_plural():
    tally = Tally()
    episode = Episode(
        KEY, {}, "rewarded", 1.0, calls=(call("length"),), setbacks=(Failure("backend", "lost 1", "lost"),)
    )
    tally.add(episode)
    assert [line.partition(";")[0] for line in tally.lines()] == [
        "1 failed call or attempt was tried again",
        "1 completion was cut at its limit of tokens",
    ]
    tally.add(episode)
    assert [line.partition(";")[0] for line in tally.lines()] == [
        "2 failed calls or attempts were tried again",
        "2 completions were cut at their limit of tokens",
    ]


@pytest.mark.parametrize("kind", UNEVEN)
def test_every_kind_is_counted_and_told_with_its_commonest_cause_and_an_episode(kind):
    episodes, line = UNEVEN[kind]
    tally = Tally()
    for episode in episodes:
        tally.add(episode)
    assert tally.lines() == [line]
    assert list(tally.reasons()) == [kind]


def test_a_failure_is_new_the_first_time_that_its_cause_is_seen():
    tally = Tally()
    episodes = [Episode(KEY, {}, "failed", None, failure=failed(number)) for number in range(3)]
    assert [len(tally.add(episode)) for episode in episodes] == [1, 0, 0]


def test_reasons_without_end_are_counted_in_bounded_memory():
    reasons = Reasons()
    for number in range(5000):
        reasons.add(f"fingerprint {number}", f"reason {number}", KEY)
    assert reasons.total == 5000
    assert len(reasons.commonest(10_000)) <= 1001
    assert reasons.commonest(1)[0].reason == "other causes"


def test_a_reason_of_any_length_and_any_characters_is_a_line_that_can_be_written():
    tally = Tally()
    tally.add(Episode(KEY, {}, "rewarded", 0.0, mistake="no tool\n" + "\ud83d x" * 10_000))
    (line,) = tally.lines()
    assert len(line) < 600
    assert "\n" not in line
    line.encode()
