"""Teachers: a folder and an endpoint say the same of every token, and what an endpoint does not say is no lesson."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import Recorder, chain, wandering_groups
from tests.costs.accounts import Accounts
from tests.training.teaching import Teacher, serving

from agentrl.algorithms.batch import build_batch
from agentrl.algorithms.contract import TokenTerms
from agentrl.algorithms.teacher import TeacherSettings
from agentrl.config.models import Config
from agentrl.errors import BackendError, ConfigError, RunError
from agentrl.learner.learner import Learner
from agentrl.plugins import Plugins
from agentrl.rollout.contract import Group
from agentrl.runs.ledger import step_ledger
from agentrl.training.columns import Columns
from agentrl.training.sources import Sources
from agentrl.training.teachers import EndpointTeacher, sequences_of

VOCABULARY = 64


@pytest.fixture(scope="module")
def learner(tiny_folder):
    config = config_of(model="x")
    return Learner(tiny_folder, config.training, build({"name": "distill", "advantage": {"model": "x"}}).loss, 0)


@pytest.fixture(scope="module")
def teacher(tiny_folder):
    return Teacher(tiny_folder)


def config_of(**advantage):
    section = {"name": "distill", "advantage": advantage}
    return Config.model_validate({"agent": "math", "algorithm": section, "training": {"device": "cpu"}})


def columns_of(config, learner, folder, **options):
    algorithm = build(config.algorithm.model_dump())
    sources = Sources.of(algorithm, config, Plugins(), folder)
    return Columns.load(algorithm, learner, sources, config, **options)


def at_temperature_1(groups):
    """The same groups, sampled at temperature 1."""
    for group in groups:
        for episode in group.episodes:
            for index, span in enumerate(episode.tree.spans):
                if span.sampled is not None:
                    episode.tree._spans[index] = replace(span, sampled=replace(span.sampled, temperature=1.0))
    return groups


def some_groups(seed=3, **sizes):
    return at_temperature_1(wandering_groups(random.Random(seed), VOCABULARY, **sizes))


def short_groups(count=6):
    """A group of conversations of two turns, each with a token of its own at the start."""
    made = [
        chain(Recorder(random.Random(n), VOCABULARY), [n + 1, 5], turns=2).episode(float(n), n) for n in range(count)
    ]
    return [Group(0, tuple(made))]


def test_an_endpoint_says_of_every_token_what_the_folder_does(learner, teacher, tiny_folder):
    groups = some_groups(groups=3, size=3, calls=6)
    near = columns_of(config_of(model=str(tiny_folder)), learner, tiny_folder).prepare(groups)
    with serving(teacher) as url:
        far = columns_of(config_of(model="big", url=url, concurrency=3), learner, tiny_folder).prepare(groups)
    np.testing.assert_allclose(far.batch.extra["teacher"], near.batch.extra["teacher"], atol=1e-4)
    expected = np.clip(near.batch.extra["teacher"] - near.batch.logprob, -20, 20)
    np.testing.assert_allclose(near.batch.advantage, expected)
    assert near.metrics["teacher/kl"] == pytest.approx(-np.mean(near.batch.extra["teacher"] - near.batch.logprob))
    assert teacher.most_at_once <= 3
    whole = near.account
    assert {fate for group in whole.fates for fate in group} <= {"trained", "rejected"}
    assert far.account.fates == whole.fates


def test_every_term_has_its_token_at_its_place_in_a_sequence():
    for seed in range(20):
        batch, _ = build_batch(some_groups(seed, calls=6), build({"name": "distill", "advantage": {"model": "x"}}))
        found = []
        for ids, terms, path in sequences_of(batch):
            assert set(batch.targets.path[terms]) == {path}
            np.testing.assert_array_equal(ids[batch.targets.depth[terms] + 1], batch.targets.token[terms])
            for term in terms:
                depth = batch.targets.depth[term]
                np.testing.assert_array_equal(ids[: depth + 1], batch.paths[path][: depth + 1])
            found += terms.tolist()
        assert sorted(found) == list(range(len(batch.version)))


def test_advantages_are_bounded():
    advantage = build({"name": "distill", "advantage": {"model": "x", "bound": 2.5}}).advantage
    none = np.zeros(4, dtype=np.int64)
    terms = TokenTerms(np.zeros(4), np.full(4, -1.0), none, none, none, {"teacher": np.array([-2, -9, 0, -math.inf])})
    assert advantage.of_tokens(terms)["advantage"].tolist() == [-1.0, -2.5, 1.0, -2.5]
    assert advantage([{"a": 1.0}, {}]) == [{"a": 0.0}, {}]


def test_what_is_refused_for_a_while_is_asked_again(learner, tiny_folder):
    def busy(ids, before):
        return (429, {"error": {"message": "slow down"}}) if before < 2 else (503, "no") if before == 2 else None

    groups, accounts = short_groups(2), Accounts()
    teacher = Teacher(tiny_folder)
    with serving(teacher) as url:
        columns = columns_of(config_of(model="big", url=url), learner, tiny_folder, meter=accounts)
        teacher.misbehave = busy
        prepared = columns.prepare(groups)
    assert prepared.account.fates == (("trained", "trained"),)
    assert len(teacher.asked) == 1 + 2 * 4
    answered = [ids for n, ids in enumerate(teacher.asked) if ids not in teacher.asked[n + 1 :]]
    assert accounts.counts("learner", "teacher", "big") == (1 + 2 * 4, 2 * 3, sum(map(len, answered)), len(answered))


@pytest.mark.parametrize(
    ("misbehaviour", "said"),
    [
        ((429, {"error": {"message": "slow down"}}), "429"),
        ((500, "broken"), "500"),
        (2.0, "did not answer within 0.5 s"),
        ((200, "{"), "without the log-probability of every id"),
        ((200, {"choices": []}), "without the log-probability of every id"),
        ((200, {"choices": [{"prompt_logprobs": [None]}]}), "without the log-probability of every id"),
        ((200, {"choices": [{"prompt_logprobs": None}]}), "without the log-probability of every id"),
        ((400, {"error": {"message": "the prompt is too long for the context length"}}), "too long"),
    ],
    ids=["429", "500", "time-out", "no JSON", "no choice", "too few", "none", "context"],
)
def test_an_episode_that_is_not_scored_has_failed_and_is_counted(learner, tiny_folder, misbehaviour, said):
    groups, told = short_groups(), []
    teacher = Teacher(tiny_folder, lambda ids, before: misbehaviour if ids[0] == 3 else None)
    with serving(teacher) as url:
        config = config_of(model="big", url=url, timeout=0.5 if misbehaviour == 2.0 else 30, max_retries=1)
        prepared = columns_of(config, learner, tiny_folder, warn=told.append).prepare(groups)
        others = [Group(0, tuple(each for each in groups[0].episodes if each.key.sample != 2))]
        alone = columns_of(config, learner, tiny_folder).prepare(others)
    assert prepared.account.fates == (("trained", "trained", "failed", "trained", "trained", "trained"),)
    ledger = step_ledger(prepared.groups, prepared.account.fates)
    assert ledger.failed_by == {"reward": 1}
    assert prepared.metrics["teacher/failed"] == 1
    for name in ("advantage", "weight", "logprob"):
        np.testing.assert_array_equal(getattr(prepared.batch, name), getattr(alone.batch, name))
    (warning,) = told
    assert "an episode of the step could not be scored and failed" in warning
    assert said in warning
    assert groups[0].episodes[2].outcome == "rewarded"  # what was given is as it was


def test_a_step_of_which_nothing_is_scored_stops_the_run_and_can_be_repeated(learner, tiny_folder, tmp_path):
    teacher = Teacher(tiny_folder)
    with serving(teacher) as url:
        config = config_of(model="big", url=url, max_retries=0)
        columns = columns_of(config, learner, tiny_folder, run=tmp_path)
        teacher.misbehave = lambda ids, before: (500, "broken")
        with pytest.raises(RunError, match=r"no episode of the step could be scored: 6 times the teacher.*500") as no:
            columns.prepare(short_groups())
        assert "resume" in no.value.fix
        teacher.misbehave = lambda ids, before: None
        resumed = columns_of(config, learner, tiny_folder, run=tmp_path).prepare(short_groups())
        assert resumed.account.fates == (("trained",) * 6,)
        columns = columns_of(config_of(model="big", url=url), learner, tiny_folder)
        teacher.misbehave = lambda ids, before: (401, {"error": {"message": "who are you?"}})
        with pytest.raises(BackendError, match="the teacher refuses every call"):
            columns.prepare(short_groups())


def test_a_repeated_step_is_told_what_the_first_was(learner, tiny_folder, tmp_path):
    groups = short_groups()
    teacher = Teacher(tiny_folder, lambda ids, before: (500, "no") if ids[0] == 2 else None)
    with serving(teacher) as url:
        config = config_of(model="big", url=url, max_retries=0)
        first = columns_of(config, learner, tiny_folder, run=tmp_path).prepare(groups)
        asked = len(teacher.asked)
        teacher.misbehave = lambda ids, before: None
        again = columns_of(config, learner, tiny_folder, run=tmp_path).prepare(groups)
    assert len(teacher.asked) == asked + 1  # the vocabulary
    assert again.account.fates == first.account.fates
    assert again.metrics["teacher/failed"] == 1
    np.testing.assert_array_equal(again.batch.advantage, first.batch.advantage)
    (file,) = (tmp_path / "teacher").iterdir()
    assert file.name == "step-000001.json"
    file.write_text("{")
    with serving(teacher) as url, pytest.raises(RunError, match="cannot be read"):
        columns_of(config_of(model="big", url=url), learner, tiny_folder, run=tmp_path).prepare(groups)


def test_what_no_checkpoint_leads_to_is_forgotten(tmp_path):
    from agentrl.training.score_log import ScoreLog

    log = ScoreLog(tmp_path, keep=2)
    for step in range(1, 7):
        log.write(step, {"a": [-0.1, -math.inf]}, {})
        if step % 2 == 0:
            (tmp_path / "checkpoints" / f"step-{step:06}").mkdir(parents=True)
    log.write(7, {}, {})
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == [f"step-{n:06}.json" for n in (5, 6, 7)]
    assert log.read(6).logprobs == {"a": [-0.1, -math.inf]}
    assert log.read(1).logprobs == {}


def test_tokens_at_another_temperature_are_no_lesson(learner, teacher, tiny_folder):
    groups = short_groups(3)
    hot = Recorder(random.Random(1), VOCABULARY)
    hot.call([1, 2], 4, temperature=0.7)
    groups = [Group(0, (*groups[0].episodes, hot.episode(1.0, 3)))]
    with serving(teacher) as url:
        prepared = columns_of(config_of(model="big", url=url), learner, tiny_folder).prepare(groups)
    assert prepared.account.fates == (("trained", "trained", "trained", "failed"),)
    near = columns_of(config_of(model=str(tiny_folder)), learner, tiny_folder).prepare(groups)
    assert near.account.fates == (("trained",) * 4,)


def other_vocabulary(folder, copy):
    """The model in ``folder`` with two tokens of its vocabulary exchanged."""
    shutil.copytree(folder, copy)
    file = copy / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
    return copy


def test_a_teacher_with_another_vocabulary_is_refused_before_the_start(learner, tiny_folder, tmp_path):
    other = other_vocabulary(tiny_folder, tmp_path / "other")
    with pytest.raises(ConfigError, match="has another vocabulary") as refused:
        columns_of(config_of(model=str(other)), learner, tiny_folder)
    assert refused.value.key == "algorithm.advantage.model"
    with serving(Teacher(other)) as url, pytest.raises(ConfigError, match=r"another vocabulary.* here and .* there"):
        columns_of(config_of(model="big", url=url), learner, tiny_folder)


def test_an_endpoint_that_tells_no_tokens_is_refused(learner, tiny_folder):
    def untold(ids, before):
        return 200, {"choices": [{"prompt_logprobs": [None, *({str(each): {"logprob": -1.0}} for each in ids[1:])]}]}

    with serving(Teacher(tiny_folder, untold)) as url, pytest.raises(ConfigError, match="cannot be told"):
        columns_of(config_of(model="big", url=url), learner, tiny_folder)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model": "nowhere"}, "no bundled model"),
        ({"model": "tiny", "timeout": 3}, "has no effect"),
        ({"model": "x", "url": "ftp://a"}, "should be a URL"),
        ({"model": "x", "url": "http://a/v1", "api_key_env": "sk-1 2"}, "name of an environment variable"),
        ({"model": "x", "url": "http://a/v1", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ({"model": "x", "url": "http://127.0.0.1:9/v1", "max_retries": 0}, "does not answer"),
    ],
)
def test_teachers_that_are_not_there_are_refused(learner, tiny_folder, keys, said):
    with pytest.raises(ConfigError, match=said) as refused:
        columns_of(config_of(**keys), learner, tiny_folder)
    assert (refused.value.key or "").startswith("algorithm.advantage")


def test_the_key_comes_from_the_environment_and_is_not_repeated(tiny_folder):
    teacher = Teacher(tiny_folder, lambda ids, before: (400, {"error": {"message": "bad key abcdef"}}))
    settings = {"model": "big", "api_key_env": "TEACHER_KEY"}
    with serving(teacher) as url:
        endpoint = EndpointTeacher(TeacherSettings(url=url, **settings), {"TEACHER_KEY": "abcdef"})
        asked = endpoint.ask([np.array([1, 2, 3])])
    assert teacher.keys == {"Bearer abcdef"}
    (failure,) = asked.failures.values()
    assert "abcdef" not in failure.reason
