"""The command ``agentrl plugin-name``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("plugin-name")
@click.argument("folder", type=click.Path(path_type=Path), default="runs")
def main(folder: Path) -> None:
    """Show the runs in FOLDER by their held-out reward, the best first."""
    rewards = {}
    for path in folder.glob("*/summary.json"):
        reward = json.loads(path.read_text()).get("reward_after")
        if reward is not None:
            rewards[path.parent.name] = reward
    for name in sorted(rewards, key=rewards.__getitem__, reverse=True):
        click.echo(f"{rewards[name]:.3f}  {name}")
    if not rewards:
        click.echo(f"no run in {folder} was evaluated", err=True)
