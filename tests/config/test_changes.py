"""Which keys of a run's config have changed, and whether somebody has said so."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.config import load_config, resolve_config
from agentrl.config.changes import changes, check_named
from agentrl.errors import ConfigError
from agentrl.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of an agent in a file, with a part that has keys of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "elsewhere").mkdir()
    settings = ["run.name=mine", "agent=mine.py:Agent", "algorithm={name: dapo, advantage: {name: group_mean}}"]
    return RunFolder.create(load_config(None, *settings, environ={}))


def told(run: RunFolder, file: Path | None = None, *settings: str, **environ: str) -> list[str]:
    before = load_config(run.config, environ={})
    resolved = resolve_config(file or run.config, *settings, environ=environ)
    changed = changes(before, resolved.config, run.path)
    check_named(changed, resolved.provenance)
    return [str(each) for each in changed]


def test_the_config_of_a_run_has_not_changed_wherever_it_is_read(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.path.resolve()
    monkeypatch.chdir(path.parents[1] / "elsewhere")
    assert told(RunFolder(path)) == []


def test_a_key_that_the_command_line_names_may_change(run: RunFolder) -> None:
    assert told(run, None, "training.steps=100") == ["training.steps=100 (was 60)"]


def test_keys_of_a_part_go_with_its_name(run: RunFolder) -> None:
    assert told(run, None, "algorithm=grpo") == [
        'algorithm=grpo (was {"name": "dapo", "advantage": {"name": "group_mean"}})'
    ]


def test_keys_that_a_file_or_the_environment_changes_are_refused_by_name(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(run.config.read_text().replace("steps: 60", "steps: 70").replace("../../mine.py", "mine.py"))
    with pytest.raises(ConfigError, match=r"training\.steps=70 \(was 60\), from file .*other\.yaml:\d+ \(name a key"):
        told(run, file)
    assert told(run, file, "training.steps=70") == ["training.steps=70 (was 60)"]
    with pytest.raises(ConfigError, match=r": seed=7 \(was 0\), from environment AGENTRL_SEED \("):
        told(run, None, AGENTRL_SEED="7")


def test_where_a_run_is_may_change(run: RunFolder) -> None:
    moved = run.path.rename(run.path.parent / "yours")
    assert told(RunFolder(moved), None, "run.name=yours", "run.dir=.") == []
