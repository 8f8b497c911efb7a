"""An agent that breaks a promise fails the test that names it, and a sound one fails none."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from tests.testing.conftest import Failures

CAPTURED = "test_it_calls_the_model_and_every_call_is_captured"
ENDS = "test_an_episode_ends_in_a_reward_or_a_rejection"
FORGETS = "test_an_episode_leaves_nothing_behind_for_the_next"
APART = "test_episodes_at_once_do_not_mix"
MISTAKE, MISTAKES = "test_a_mistake_of_the_policy_is_an_outcome", "test_a_mistake_that_is_made_for_ever_is_an_outcome"
REFUSED = "test_a_request_that_is_refused_for_good_fails_the_episode"
OUTGROWN = "test_a_prompt_that_outgrows_the_context_is_an_outcome"
BROKE = "test_a_backend_that_fails_fails_the_episode"
CLIENT = "test_the_client_that_all_share_is_as_it_was"
CREDENTIAL = "test_either_credential_is_enough"

SOME = "not worker_process and (not mistake or empty or nested or unknown)"
"""All but what waits for another interpreter, and most of the mistakes."""

QUICK = f"{SOME} and not {BROKE}"
"""Nor what waits for the SDK's retries."""


@pytest.mark.parametrize(
    ("agent", "select", "failed", "told"),
    [
        ("idle", CAPTURED, {CAPTURED}, "ended without a call of the model"),
        ("trusting", QUICK, {MISTAKE, MISTAKES}, "failed on the side of the agent: KeyError"),
        ("endless", QUICK, {MISTAKES}, "would have gone on: limit its turns"),
        ("waiting", "of_the_policy and empty", {MISTAKE}, "the agent blocked the event loop"),
        ("Remembering()", QUICK, {FORGETS, APART}, "and then to"),
        ("Mixing()", f"{QUICK} and not {ENDS}", {APART}, "it went otherwise than by itself"),  # ENDS: by chance.
        ("blocking", APART, {APART}, "while one episode waits for the model, no other goes on"),
        ("unrewarding", ENDS, {ENDS}, "return a number"),
        ("swallowing", SOME, {REFUSED, BROKE}, "as if nothing were wrong: rewarded with 0.0"),
        ("insisting", QUICK, {REFUSED, OUTGROWN}, "it asked 30 times"),
        ("blaming", SOME, {REFUSED, BROKE}, "it was put down to the agent: ValueError"),
        ("marking", QUICK, {CLIENT}, "x-agent"),
        ("particular", QUICK, {CREDENTIAL}, "a strange key"),
    ],
)
def test_a_broken_promise_fails_its_test(
    failures: Failures, agent: str, select: str, failed: set[str], told: str
) -> None:
    found = failures("AgentConformance", f"agent = broken_agents.{agent}\ntimeout = 2.0\nmost_calls = 8", select)
    assert set(found) == failed
    assert any(told in message for message in found.values())


@pytest.mark.parametrize("agent", ["sound", "changing", "two_turns"])
def test_a_sound_agent_fails_none(failures: Failures, agent: str) -> None:
    assert failures("AgentConformance", f"agent = broken_agents.{agent}", SOME) == {}


def test_an_agent_whose_answer_is_scored_names_its_reward(failures: Failures) -> None:
    attributes = 'agent = broken_agents.answering\nreward = "tests.testing.broken_rewards:sound"'
    assert failures("AgentConformance", attributes, QUICK) == {}


def test_an_answer_that_json_cannot_carry_is_named(failures: Failures) -> None:
    attributes = 'agent = broken_agents.unfit\nreward = "tests.testing.broken_rewards:sound"'
    found = failures("AgentConformance", attributes, QUICK)
    assert set(found) == {"test_json_can_carry_what_it_returns"}
    assert "what run() returned['answers'], a set" in next(iter(found.values()))


@pytest.mark.parametrize(("claim", "failed"), [(True, {"test_its_history_is_append_only"}), (False, set())])
def test_a_fork_fails_only_who_claims_that_there_is_none(failures: Failures, claim: bool, failed: set[str]) -> None:
    found = failures("AgentConformance", f"agent = broken_agents.rewriting\nappend_only = {claim}", "append_only")
    assert set(found) == failed


def test_an_agent_that_works_here_only_is_found_out_in_a_worker(failures: Failures) -> None:
    attributes = 'agent = "tests.testing.broken_agents:homebound"'
    assert set(failures("AgentConformance", attributes, "worker_process")) == {
        "test_it_runs_in_a_worker_process_as_well"
    }


def test_a_synchronous_agent_is_held_to_the_same_in_worker_processes(failures: Failures) -> None:
    attributes = 'agent = "tests.testing.broken_agents:plain"\nmode = "subproc"'
    assert failures("AgentConformance", attributes, QUICK) == {}


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ('agent = "no-such-agent"', "there is no agent 'no-such-agent'"),
        ("pass", "TestBroken does not say what it tests: set the class attribute `agent`"),
        ('agent = broken_agents.sound\nkwargs = {"turns": 1}', "takes no 'turns'"),
        ("agent = broken_agents.plain", "rollout.mode=subproc"),
    ],
)
def test_an_agent_that_cannot_be_run_is_refused_in_words(failures: Failures, attributes: str, told: str) -> None:
    found = failures("AgentConformance", attributes, CAPTURED)
    assert told in found[CAPTURED]


def test_the_agent_of_the_readme_passes_the_suite_of_the_documentation(failures: Failures, tmp_path: Path) -> None:
    pages = [Path(__file__).parents[2] / name for name in ("README.md", "docs/plugins.md")]
    blocks = re.findall(r"```python[^\n]*\n(.*?)```", "".join(page.read_text() for page in pages), re.DOTALL)
    [agent] = [block for block in blocks if "class CapitalAgent" in block]
    [suite] = [block for block in blocks if "(AgentConformance)" in block]
    (tmp_path / "agents.py").write_text(agent)
    (tmp_path / "questions.jsonl").write_text('{"question": "Of France?", "answer": "Paris"}\n')
    _, body = suite.split("(AgentConformance):\n")
    attributes = textwrap.dedent(body).replace("capitals", f"{tmp_path}/agents.py:CapitalAgent")
    assert failures("AgentConformance", attributes.replace("questions", f"{tmp_path}/questions"), QUICK) == {}
