"""Train the example agent, whose workflow is a class with `async def run(self, data, **extra_kwargs)`:

python3 examples/agent_workflow/train.py --config examples/agent_workflow/config.yaml scheduler.type=local
"""

import argparse
import os
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parents[2] / ".venv"

try:
    from agentrl import AgentRLError, Trainer, load_config
except ModuleNotFoundError:  # `make setup` installs agentrl into .venv, and this python3 is another.
    python = str(VENV / "bin" / "python")
    if not os.path.exists(python) or sys.prefix == str(VENV):
        sys.exit(f"error: agentrl is not installed for {sys.executable}, and {VENV} has none: run `make setup` first")
    os.execv(python, [python, *sys.argv])  # noqa: S606


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the example agent.")
    parser.add_argument("--config", required=True, help="a YAML file of settings")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="settings that win over those of the file"
    )
    arguments = parser.parse_args()
    try:
        with Trainer(load_config(arguments.config, *arguments.overrides)) as trainer:
            summary = trainer.train(workflow="agentrl_agents.math.MathAgent")
    except AgentRLError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"held-out reward {summary.reward_before} -> {summary.reward_after}; checkpoint: {summary.checkpoint}")


if __name__ == "__main__":
    main()
