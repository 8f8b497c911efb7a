"""Whole examinations of the bundled model: everything well, and each thing that can be wrong by its real cause."""

from __future__ import annotations

import pytest

SECTIONS = ["versions", "plugins", "model", "machine", "config", "learner", "engine", "agent", "group", "step"]


def test_where_all_is_well_every_section_says_so_and_nothing_is_written(examined, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = examined("math")
    assert result.diagnosis.ready
    assert result.diagnosis.exit_code == 0
    assert [section.name for section in result.diagnosis.sections] == SECTIONS
    assert all(found <= {"ok", "note"} for found in result.levels().values()), result.diagnosis.to_json()
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_an_agent_in_worker_processes_is_examined_there(examined, tmp_path):
    result = examined("agents.py:reads_environment", "rollout.mode=subproc", "rollout.max_workers=1")
    assert result.diagnosis.ready, result.diagnosis.to_json()
    texts = [finding.text for finding in result.diagnosis.of_level("ok")]
    assert any("agents.py:reads_environment runs in worker processes of this interpreter" in text for text in texts)
    assert any(": 1 call, " in text for text in texts)
    assert {path.name for path in tmp_path.iterdir()} <= {"agents.py", "backends.py", "__pycache__"}


def test_an_episode_and_its_groups_are_told_in_figures(examined):
    result = examined("math")
    figures = {key: value for _, each in result.told.found_in for key, value in each.figures.items()}
    assert figures["calls"] == 1
    assert figures["prompt_tokens"] > figures["completion_tokens"] > 0
    assert figures["reward"] in (0.0, 1.0)
    assert 0 < figures["reward_std"] <= 0.5
    assert figures["groups"] == 2
    assert figures["mean_difference"] < 1e-4
    assert figures["ratio_mean"] == pytest.approx(1.0, abs=1e-3)
    assert "group: running groups of episodes, 8 of 8 done" in result.told.activities


def test_the_dry_episode_is_shown_as_the_conversation_that_it_was(examined):
    """Each message once, in both conversations of an agent that edits its history; and what the model wrote as such."""
    (outcome,) = [each for _, each in examined("agents.py:Forgetful").told.found_in if "calls" in each.figures]
    shown = [(each["role"], "sampled" in each) for each in outcome.figures["conversation"]]
    asked, wrote = ("user", False), ("assistant", True)
    assert shown == [asked, wrote, asked, ("assistant", False), asked, wrote]
    question, reply, *_ = outcome.figures["conversation"]
    task, first, second, *_ = outcome.details
    assert task.startswith('task       {"question": ')
    assert first == f"user       {question['content']}"
    assert second.startswith("model      ")
    assert second.endswith(reply["content"].split("\n")[0])


def test_the_conversation_of_an_episode_that_failed_is_shown_too(examined):
    (outcome,) = [each for _, each in examined("agents.py:raises").told.found_in if "calls" in each.figures]
    assert outcome.level == "problem"
    assert [line.split()[0] for line in outcome.details if not line.startswith(" ")] == ["task", "user", "model"]


@pytest.mark.parametrize(
    ("agent", "said", "fix"),
    [
        ("silent", "0 calls: the agent never used the endpoint", "rollout.mode=subproc"),
        ("raises", "1 call; agent: LookupError: no such tool at ", "PolicyError"),
        ("verbose", "0 calls: the first prompt already leaves no room in the context", "shorten the history"),
        ("reshapes", "gateway: top_p=0.5 changes the distribution", "rollout.override: {top_p: null}"),
    ],
)
def test_an_episode_that_cannot_be_trained_is_a_problem_and_ends_the_examination(examined, agent, said, fix):
    result = examined(f"agents.py:{agent}")
    problem = result.only("problem", "agent")
    assert said in problem.text
    assert fix in problem.fix
    assert result.diagnosis.exit_code == 1
    assert [each.text for each in result.diagnosis.of_level("skipped")] == ["needs agent", "needs group"]


def test_an_agent_that_hangs_is_told_at_its_deadline(examined):
    problem = examined("agents.py:hangs", "rollout.episode_timeout=0.5").only("problem", "agent")
    assert "did not end within 0.5 s" in problem.text
    assert "before any call" in problem.text
    assert problem.fix == "raise rollout.episode_timeout, or make the agent faster"


def test_equal_rewards_are_a_warning_that_says_what_to_change(examined):
    result = examined("agents.py:constant")
    warning = result.only("warning", "group")
    assert "8 rewards with a mean of 0.500, a standard deviation of 0.000" in warning.text
    assert "in none of 2 groups" in warning.text
    assert "rollout.group_size" in warning.fix
    assert warning.figures["groups_that_differ"] == 0
    assert result.diagnosis.ready


def test_an_agent_that_rejects_everything_has_nothing_to_train(examined):
    result = examined("agents.py:rejects")
    assert [finding.fix for finding in result.diagnosis.of_level("warning")] == ["return a reward instead of None"] * 2
    assert result.diagnosis.sections[-1].findings[-1].text == "no episode has a token to be trained"


def test_completions_that_are_cut_are_counted(examined):
    warning = examined("agents.py:cuts").diagnosis.of_level("warning")[-1]
    assert warning.text.startswith("8 of 8 completions were cut")
    assert "rollout.max_tokens" in warning.fix


def test_an_edited_history_is_told_with_its_reason(examined):
    result = examined("agents.py:Forgetful")
    notes = [note.text for note in result.diagnosis.of_level("note")]
    assert "1 prompts were rendered in full instead of extended: 1 for 'history edited'" in notes
    assert "8 of 16 prompts were rendered in full: 8 for 'history edited'" in notes


def test_what_a_call_did_without_is_told_with_the_key_that_takes_it_so(examined):
    notes = [note.text for note in examined("agents.py:asks").diagnosis.of_level("note")]
    assert [note for note in notes if "1 of 1 calls did without verbosity, which cannot be granted here" in note]
    notes = [note.text for note in examined("agents.py:strict").diagnosis.of_level("note")]
    assert not [note for note in notes if "did without" in note]  # The engine's grammars keep what is strict.
    notes = examined("agents.py:strict", "rollout.override={strict: false}").diagnosis.of_level("note")
    assert [note.text for note in notes if "strict" in note.text] == ["rollout.override changed strict"]


def test_failures_are_a_share_of_the_episodes_by_side(examined):
    problem = examined("agents.py:Flaky").only("problem", "group")
    assert problem.text.startswith("8 of 8 episodes failed; commonest, 8 times: agent: RuntimeError: out of luck at ")
    assert problem.figures == {"failed": 8, "of": 8, "sides": {"agent": 8}}


def test_an_episode_that_nearly_fills_the_context_and_one_that_no_pass_holds_are_told(examined):
    result = examined("agents.py:wordy", "training.tokens_per_batch=512")
    assert any("tokens of a context of 1,024" in warning.text for warning in result.diagnosis.of_level("warning"))
    problem = result.only("problem", "group")
    assert "does not fit training.tokens_per_batch=512" in problem.text
    assert problem.fix.startswith("set training.tokens_per_batch to 9")
    assert result.levels()["step"] == {"skipped"}


@pytest.mark.parametrize(
    ("backend", "section", "said"),
    [
        ("NoLogprobs", "engine", "a completion of 16 ids came with 0 logprobs"),
        ("OfTemperatureOne", "engine", "in the mean at temperature 0.7"),
        ("Frozen", "engine", "cannot be trained: it takes no weights"),
        ("Cool", "engine", "with rollout.temperature=1.0 and inference.backend='backends.py:Cool' every call would be"),
        ("KeepsOldWeights", "step", "it serves version 0, and was given version 1 (wrong version)"),
        ("Raises", "engine", "ValueError: no engine at "),
        ("RaisesAtTheEnd", "end", "ValueError: no end at "),
    ],
)
def test_an_engine_that_breaks_its_contract_is_found_out(examined, backend, section, said):
    result = examined("math", f"inference.backend=backends.py:{backend}")
    problem = result.only("problem", section)
    assert said in problem.text
    assert problem.fix
    assert not result.diagnosis.ready
    assert (ValueError in map(type, result.told.errors)) == backend.startswith("Raises")


def test_failures_of_an_engine_that_were_overcome_are_a_warning(examined):
    result = examined("math", "inference.backend=backends.py:Unsteady")
    assert result.diagnosis.ready
    (warning,) = [finding for finding in result.diagnosis.of_level("warning") if "retried" in finding.figures]
    assert "failed calls or attempts were repeated; commonest" in warning.text
    assert "ValueError: lost" in warning.text


def test_a_long_start_is_told_as_it_goes_on(examined):
    result = examined("math", "inference.backend=backends.py:TellsOfItsStart")
    assert "engine: server 0: loading the weights" in result.told.activities
    assert result.diagnosis.ready


def test_an_engine_in_16_bits_differs_by_its_rounding_and_that_is_a_note(examined):
    result = examined("math", "inference.backend={name: torch, dtype: bfloat16}")
    assert result.found("engine") == result.found("step") == []
    notes = [note for note in result.diagnosis.of_level("note") if "rounding to 16 bits" in note.text]
    assert [1e-3 < note.figures["mean_difference"] < 0.1 for note in notes] == [True, True]


@pytest.mark.parametrize(
    ("agent", "setting", "section", "said", "code"),
    [
        ("mth", "seed=0", "config", "there is no agent 'mth'", 2),
        ("math", "model=no-such-model", "model", "'no-such-model' is no bundled model", 2),
        ("math", "algorithm=gpro", "config", "gpro", 2),
        ("math", "rollout.temperature=0", "config", "rollout.temperature=0 samples all episodes", 2),
        ("math", "trackers=[tensorbord]", "config", "tensorbord", 2),
        ("math", "inference.backend=backends.py:Missing", "config", "has no 'Missing'", 2),
        ("math", "run.dir=agents.py/runs", "machine", "agents.py is not a folder that can be written to", 3),
        ("broken_agent.py:Agent", "seed=0", "config", "no_such_framework", 3),
    ],
)
def test_what_a_run_would_refuse_is_a_problem_with_the_same_exit_code(
    examined, tmp_path, agent, setting, section, said, code
):
    (tmp_path / "broken_agent.py").write_text("import no_such_framework\n")
    result = examined(agent, setting)
    problem = result.only("problem", section)
    assert said in problem.text
    assert problem.fix
    assert result.diagnosis.exit_code == code


def test_settings_without_effect_are_warnings(examined):
    warning = examined("math", "tasks.eval=null", "evaluation.every=5").only("warning", "config")
    assert "evaluation.every (command line) has no effect: tasks.eval is null" in warning.text


def test_a_run_name_that_is_taken_is_a_problem(examined, tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    assert "choose another run.name" in examined("math", "run.name=mine").only("problem", "machine").fix
