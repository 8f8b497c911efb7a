"""The reward ``judge`` against a real endpoint: what it asks, and that nothing but a verdict becomes a reward."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from tests.costs.accounts import Accounts
from tests.rewards.scripted_judge import InTurn, Reply, ScriptedJudge, ranked, scored, shown

from agentrl.config.models import Config
from agentrl.errors import BudgetError, ConfigError, RewardError
from agentrl.gateway.contract import Call
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rewards.scoring import Scorer
from agentrl.rollout.contract import EpisodeKey, EpisodeView

KEY = "sk-very-secret"
TASK = {"question": "What is 40 + 2?", "answer": "42"}
VIEW = EpisodeView(EpisodeKey("train", 0, 0, 0), ())


@pytest.fixture
def endpoint() -> Iterator[ScriptedJudge]:
    with ScriptedJudge(lambda body: scored(7)) as judge:
        yield judge


def judge_of(endpoint: ScriptedJudge, **keys: Any) -> Callable[..., Any]:
    part = {"name": "judge", "rubric": "It is right.", "model": "wise", "url": endpoint.url, "max_retries": 2, **keys}
    loaded = Config.model_validate({"reward": part}).reward
    assert loaded is not None
    return load_reward(Plugins(), loaded)


def judged(reward: Callable[..., Any], *answers: object, view: EpisodeView = VIEW) -> list[float | Exception]:
    async def all_of_them() -> list[Any]:
        calls = (call_reward(reward, answer, TASK, view) for answer in answers)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_of_them())


def refusal(reward: Callable[..., Any], answer: object = "41") -> str:
    (error,) = judged(reward, answer)
    assert isinstance(error, RewardError), error
    return str(error)


def test_a_score_of_the_scale_becomes_a_reward_between_0_and_1(endpoint: ScriptedJudge) -> None:
    assert judged(judge_of(endpoint), "42") == [0.7]
    assert judged(judge_of(endpoint, scale=100), "42") == [0.07]
    assert judged(judge_of(endpoint, scale=7), "42") == [1.0]


def test_the_judge_is_asked_by_rubric_task_and_answer_for_a_verdict_of_one_form(endpoint: ScriptedJudge) -> None:
    judged(judge_of(endpoint, temperature=0.5, max_tokens=99), "It is 42.")
    (body,) = endpoint.requests
    assert "It is right." in body["messages"][0]["content"]
    assert shown(body) == {"task": TASK, "answer": "It is 42."}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("wise", 0.5, 99)
    form = body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["required"] == ["reason", "score"]
    assert endpoint.keys == [None]


def test_every_request_is_reported_with_what_the_endpoint_says_of_it(endpoint: ScriptedJudge) -> None:
    told = {"prompt_tokens": 50, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 40}}
    put_off = Reply(status=429, headers={"retry-after": "0"}, body="later")
    endpoint.answer = InTurn(put_off, Reply("no verdict"), scored(7), Reply("7", usage=told))
    accounts, reward = Accounts(), judge_of(endpoint, format="text")
    Scorer(reward).report_to(accounts)
    assert judged(reward, "42", "42") == [0.7, 0.7]
    # One that was put off, one that was no verdict and cost all the same, and the verdict, which is kept.
    assert accounts.counts("rollout", "judge", "wise") == (3, 1, 180, 20)
    held_out = EpisodeView(EpisodeKey("eval", 0, 0, 0), ())
    judged(reward, "41", view=held_out)
    assert accounts.counts("evaluation", "judge", "wise") == (3, 0, 150, 15)
    assert accounts.used["evaluation", "judge", "wise"].cached_tokens == 120


def test_what_an_endpoint_does_not_know_can_be_left_out(endpoint: ScriptedJudge) -> None:
    judged(judge_of(endpoint, format="text", temperature=None, max_tokens=None), "42")
    judged(judge_of(endpoint, format="json_object"), "42")
    assert set(endpoint.requests[0]) == {"model", "messages"}
    assert endpoint.requests[1]["response_format"] == {"type": "json_object"}


def test_the_judge_sees_the_fields_that_it_is_to_see(endpoint: ScriptedJudge) -> None:
    judged(judge_of(endpoint, fields=["question"]), "42")
    assert shown(endpoint.requests[0])["task"] == {"question": TASK["question"]}
    assert "no field 'title' to show to the judge, only 'question', 'answer'" in refusal(
        judge_of(endpoint, fields=["title"])
    )


def test_the_judge_may_see_the_conversation(endpoint: ScriptedJudge) -> None:
    asked = [{"role": "user", "content": "What is it?"}]
    message = {"role": "assistant", "content": "It is 42."}
    call = Call("1", None, {"messages": asked}, message, "stop", 1, 1, 0.1, (), 0, 0)
    view = EpisodeView(VIEW.key, (call,))
    judged(judge_of(endpoint, show="conversation"), "42", view=view)
    assert shown(endpoint.requests[0])["answer"] == {"answer": "42", "conversation": asked, "last_message": message}


@pytest.mark.parametrize(
    "reply",
    [
        Reply("7"),
        Reply("I give it a 7."),
        Reply('```json\n{"reason": "", "score": 7}\n```'),
        Reply('{"score": 7}'),
        Reply('{"reason": "", "score": 7, "more": 1}'),
        scored("7"),
        scored(True),
        scored(float("nan")),
        scored(11),
        scored(-1),
        scored(7, reason=None),
        Reply('[{"reason": "", "score": 7}]'),
        Reply("[" * 100_000),
        ranked([1]),
        Reply(""),
        Reply(None),
        Reply(body="<html>"),
        Reply(body='{"choices": []}'),
    ],
)
def test_what_is_no_verdict_is_asked_for_again_and_never_a_reward(endpoint: ScriptedJudge, reply: Reply) -> None:
    endpoint.answer = InTurn(reply, scored(3))
    assert judged(judge_of(endpoint), "42") == [0.3]
    endpoint.answer = InTurn(reply)
    told = refusal(judge_of(endpoint), "43")
    assert "gave no verdict in 3 tries" in told
    assert "set `format` of the reward" in told
    assert len(endpoint.requests) == 2 + 3


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_an_endpoint_that_is_busy_or_broken_is_asked_again_after_the_time_that_it_names(
    endpoint: ScriptedJudge, status: int
) -> None:
    busy = Reply(status=status, body="later", headers={"Retry-After": "0.3"})
    endpoint.answer = asked = InTurn(busy, scored(5))
    assert judged(judge_of(endpoint), "42") == [0.5]
    assert asked.times[1] - asked.times[0] >= 0.3
    endpoint.answer = InTurn(Reply(status=status, body="later", headers={"Retry-After": "0"}))
    assert f"gave no verdict in 3 tries: it answered {status}: later" in refusal(judge_of(endpoint))


def test_a_retry_after_may_be_a_date_and_holds_for_all_requests(endpoint: ScriptedJudge) -> None:
    until = time.time() + 2  # The date is of whole seconds.
    dated = Reply(status=429, headers={"Retry-After": formatdate(until, usegmt=True)})
    endpoint.answer = asked = InTurn(dated, scored(5))
    began = time.monotonic()
    assert judged(judge_of(endpoint, concurrency=1), "42", "43") == [0.5, 0.5]
    assert asked.times[1] - began >= 0.9
    assert len(asked.times) == 3


def test_a_verdict_that_takes_too_long_is_none(endpoint: ScriptedJudge) -> None:
    endpoint.answer = lambda body: Reply(after=30)
    assert "gave no verdict within 0.2 s, all tries included" in refusal(judge_of(endpoint, timeout=0.2))
    endpoint.answer = lambda body: Reply(status=429, headers={"Retry-After": "60"})
    assert "within 0.2 s, all tries included: it answered 429" in refusal(judge_of(endpoint, timeout=0.2), "43")


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with ScriptedJudge(lambda body: scored(1)) as gone:
        pass
    told = refusal(judge_of(gone, max_retries=0))
    assert "it cannot be reached" in told
    assert "see that the endpoint runs" in told


def test_the_key_is_sent_and_never_told(
    endpoint: ScriptedJudge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    reward = judge_of(endpoint, api_key_env="JUDGE_KEY", cache=str(tmp_path))
    assert judged(reward, "42") == [0.7]
    assert endpoint.keys == [f"Bearer {KEY}"]
    endpoint.answer = lambda body: Reply(status=401, body=f"the key {KEY} is unknown")
    told = refusal(reward)
    assert "answered 401: the key … is unknown (see the key in JUDGE_KEY)" in told
    assert len(endpoint.requests) == 2
    everywhere = caplog.text + "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    assert KEY not in everywhere


def test_a_key_that_is_not_there_is_missed_at_once(endpoint: ScriptedJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable JUDGE_KEY, which holds the key of the judge"):
        judge_of(endpoint, api_key_env="JUDGE_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        judge_of(endpoint, url="https://api.openai.com/v1")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"rubrik": "x"}, "did you mean 'rubric'"),
        ({"rubric": ""}, "reward.rubric"),
        ({"url": "localhost:80"}, "reward.url: should be a URL"),
        ({"url": "http://localhost/v1/chat/completions"}, "should end before /chat/completions"),
        ({"api_key_env": "sk-1"}, "should be the name of an environment variable, not a key"),
        ({"budget": {"request": 3}}, "did you mean 'requests'"),
    ],
)
def test_a_wrong_key_is_explained(endpoint: ScriptedJudge, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        judge_of(endpoint, **keys)


def test_at_most_so_many_requests_are_under_way(endpoint: ScriptedJudge) -> None:
    endpoint.answer = lambda body: Reply(scored(5).text, after=0.05)
    assert judged(judge_of(endpoint, concurrency=3), *map(str, range(12))) == [0.5] * 12
    assert endpoint.most == 3


def test_equal_questions_are_asked_once_also_at_the_same_time(endpoint: ScriptedJudge, tmp_path: Path) -> None:
    endpoint.answer = lambda body: Reply(scored(5).text, after=0.05)
    reward = judge_of(endpoint, cache=str(tmp_path))
    assert judged(reward, *["42"] * 6, "43") == [0.5] * 7
    assert judged(reward, "42") == [0.5]
    assert len(endpoint.requests) == 2
    another = judge_of(endpoint, cache=str(tmp_path))
    assert judged(another, "42", "43") == [0.5, 0.5]
    assert len(endpoint.requests) == 2
    judged(judge_of(endpoint, cache=None), "42", "42")
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize("keys", [{"rubric": "Other."}, {"model": "wiser"}, {"scale": 5}, {"temperature": 1}])
def test_a_question_under_other_settings_is_another(
    endpoint: ScriptedJudge, tmp_path: Path, keys: dict[str, Any]
) -> None:
    endpoint.answer = lambda body: scored(5)
    judged(judge_of(endpoint, cache=str(tmp_path)), "42")
    judged(judge_of(endpoint, cache=str(tmp_path), **keys), "42")
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"verdict": 3}', '{"verdict": "I give it a 7."}'])
def test_a_damaged_verdict_is_asked_for_again(endpoint: ScriptedJudge, tmp_path: Path, text: str) -> None:
    judged(judge_of(endpoint, cache=str(tmp_path)), "42")
    (file,) = tmp_path.rglob("*.json")
    file.write_text(text)
    assert judged(judge_of(endpoint, cache=str(tmp_path)), "42") == [0.7]
    assert len(endpoint.requests) == 2
    assert json.loads(json.loads(file.read_text())["verdict"])["score"] == 7


def test_a_run_keeps_its_verdicts_and_what_they_cost(endpoint: ScriptedJudge, tmp_path: Path) -> None:
    def resumed() -> Callable[..., Any]:
        reward = judge_of(endpoint, budget={"requests": 3})
        Scorer(reward).keep_in(tmp_path)
        return reward

    assert judged(resumed(), "1", "2") == [0.7, 0.7]
    assert judged(resumed(), "1", "3") == [0.7, 0.7]
    (spent,) = judged(resumed(), "4")
    assert isinstance(spent, BudgetError)
    assert "the judge's budget is spent: 3 requests of budget.requests=3" in str(spent)
    assert judged(resumed(), "3") == [0.7]  # What was paid for is there all the same.
    assert len(endpoint.requests) == 3


def test_a_spent_budget_fails_episodes_where_it_is_to(endpoint: ScriptedJudge) -> None:
    reward = judge_of(endpoint, budget={"tokens": 150, "when_spent": "fail"}, concurrency=1)
    first, second, third = judged(reward, "1", "2", "3")
    assert [first, second] == [0.7, 0.7]  # The second began below the limit.
    assert isinstance(third, RewardError)
    assert "200 tokens of budget.tokens=150" in str(third)


def test_tries_count(endpoint: ScriptedJudge) -> None:
    endpoint.answer = InTurn(Reply("no"), scored(5))
    (spent,) = judged(judge_of(endpoint, budget={"requests": 1}), "1")
    assert isinstance(spent, BudgetError)


def test_tokens_that_an_endpoint_does_not_count_cannot_be_limited(endpoint: ScriptedJudge) -> None:
    endpoint.answer = lambda body: Reply(scored(5).text, usage=None)
    assert judged(judge_of(endpoint), "1") == [0.5]
    assert "limit budget.requests instead" in refusal(judge_of(endpoint, budget={"tokens": 100}))


def test_a_judge_that_nobody_waits_for_any_more_leaves_nothing_behind(endpoint: ScriptedJudge) -> None:
    endpoint.answer = lambda body: Reply(scored(5).text, after=30)
    reward = judge_of(endpoint)

    async def left() -> None:
        task = asyncio.create_task(call_reward(reward, "42", TASK, VIEW))
        while not endpoint.requests:  # noqa: ASYNC110 (it is counted in another thread)
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(left())
    endpoint.answer = lambda body: scored(5)
    assert judged(reward, "42") == [0.5]
