"""What the command's rules are."""

import json
from pathlib import Path

from click.testing import CliRunner

from agentrl_plugin_name.command import main


def test_the_best_run_comes_first(tmp_path: Path) -> None:
    for name, reward in [("a", 0.25), ("b", 0.5), ("c", None)]:
        (tmp_path / name).mkdir()
        summary = json.dumps({"reward_after": reward})
        (tmp_path / name / "summary.json").write_text(summary)
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.output.splitlines() == ["0.500  b", "0.250  a"]


def test_without_runs_it_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 0
    assert "no run in" in result.output
