"""What takes longer than a test: every bundled agent on three seeds, every algorithm, and an environment of its own.

Run by ``make acceptance``. Prints a table and ends with ``N passed, N failed``; the exit code says the same. With
``--short`` there is one seed, one agent at rest at each temperature, and few algorithms.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path

from tests.acceptance.checks import (
    Check,
    agreement,
    blanked_tools,
    environment,
    learning,
    memory_plan,
    preset_learns,
)

from agentrl.environ import ENVIRONMENTS
from agentrl.plugins import Plugins

AGENTS = ("math", "multi_turn_math", "calculator")
ELSEWHERE = {"camel": "camel-math"}
"""By plugin, the agent that is trained in an environment of its own."""
SEEDS = (0, 1, 2)
TEMPERATURES = (1.0, 0.7)
PRESETS = tuple(sorted(entry.name for entry in Plugins().entries("algorithms") if entry.name != "sft"))
"""All that `agentrl train` takes."""
STALENESS = (0, 2)
PLANNED = (
    ("llama-135m", "training.tokens_per_batch=256"),
    ("llama-135m", "training.tokens_per_batch=2048"),
    ("llama-135m", "training.tokens_per_batch=2048", "training.lora=16"),
    ("llama-135m", "training.tokens_per_batch=2048", "training.gradient_checkpointing=true"),
    ("qwen3-0.6b", "training.tokens_per_batch=1024"),
)
"""Shapes, and settings that change what a learner's step takes."""
OF_THE_SHORT_TABLE = (("ppo", 2), ("rloo", 0))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance", description=__doc__)
    parser.add_argument("--short", action="store_true", help="one seed, few agents at rest, few algorithms")
    short = parser.parse_args().short
    failed: list[Check] = []
    passed = 0
    with tempfile.TemporaryDirectory(prefix="agentrl-acceptance-") as scratch:
        for check in _checks(Path(scratch), short):
            print(check.line(), flush=True)
            passed += check.passed
            if not check.passed:
                failed.append(check)
    print(f"\n{passed} passed, {len(failed)} failed")
    return 1 if failed else 0


def _checks(scratch: Path, short: bool):
    seeds = SEEDS[:1] if short else SEEDS
    print(Check.header(), flush=True)
    for agent in AGENTS:
        for seed in seeds:
            yield from learning(agent, seed, scratch)
    yield from learning(AGENTS[0], SEEDS[0], scratch, processes=2)
    for seed in seeds:
        yield blanked_tools(scratch / f"calculator-{seed}")
    at_rest = list(zip(AGENTS[1:], TEMPERATURES, strict=True)) if short else itertools.product(AGENTS, TEMPERATURES)
    for agent, temperature in at_rest:
        yield agreement(agent, temperature, scratch)
    for shape, *settings in () if short else PLANNED:
        yield memory_plan(shape, scratch, *settings)
    for preset, staleness in OF_THE_SHORT_TABLE if short else itertools.product(PRESETS, STALENESS):
        yield preset_learns(preset, staleness, scratch)
    os.environ[ENVIRONMENTS] = str(scratch / "environments")
    for plugin, agent in ELSEWHERE.items():
        yield environment(plugin, module=plugin)
        yield from learning(agent, SEEDS[0], scratch)


if __name__ == "__main__":
    sys.exit(main())
