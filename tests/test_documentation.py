"""What the README and the examples show works as shown."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from agentrl import Config, Trainer, load_config
from agentrl.reporting.plain import PlainReporter

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_agent_of_the_readme_trains(tmp_path):
    (block,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class CapitalAgent" in block
    ]
    assert len(block.splitlines()) <= 20
    (tmp_path / "my_agent.py").write_text(block)
    small = ("training.steps=1", "rollout.tasks_per_step=2", "tasks.eval=null", f"run.dir={tmp_path}")
    config = load_config(None, *small, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        assert trainer.train(f"{tmp_path / 'my_agent.py'}:CapitalAgent").outcome == "completed"


def test_the_example_script_trains_the_agent_that_it_defines(tmp_path):
    script = ROOT / "examples" / "train_from_a_script.py"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTRL_")}
    environment |= {"AGENTRL_EVALUATION__TASKS": "8", "AGENTRL_ROLLOUT__TASKS_PER_STEP": "2"}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "outcome='completed'" in done.stdout


def test_the_quickstart_config_writes_out_the_defaults():
    path = ROOT / "agents/agentrl_agents/configs/quickstart.yaml"
    assert load_config(path, environ={}).model_copy(update={"run": Config().run}) == Config()
    assert set(yaml.safe_load(path.read_text())) <= set(Config.model_fields)


def test_the_readme_names_only_files_that_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_readme_draws_every_package_of_core():
    packages = {path.parent.name for path in (ROOT / "core/agentrl").glob("*/__init__.py")}
    drawn = set(re.findall(r"^  (\w+)/ ", README, re.MULTILINE))
    assert packages == drawn
