"""The checks of ``make acceptance``: each trains or evaluates through the command line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.shapes import random_model

from agentrl import open_run

CONFIG = Path(__file__).parents[2] / "agents/agentrl_agents/configs/quickstart.yaml"
BLANKED = Path(__file__).with_name("blanked.py")
START_AT_MOST = 0.5
END_AT_LEAST = 0.9
BLANKED_BELOW = 0.3
RATIO_WITHIN = 1e-3
KL_BELOW = 1e-4
STEPS_AT_REST = 20
MEMORY_WITHIN = 0.15
MEMORY_SMALL = 100e6
PRESET_STEPS = 25
PRESET_RISE = 0.3
MORE_KEYS: Mapping[str, str] = {"distill": "algorithm.advantage.model={scratch}/math-0"}
"""By preset, the key without which it cannot be trained with: a teacher is a run of a check before."""
DEADLINE_S = 900


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    figures: str
    passed: bool
    seconds: float

    @staticmethod
    def header() -> str:
        return f"{'check':44} {'seconds':>8}  figures"

    def line(self) -> str:
        return f"{self.name:44} {self.seconds:8.1f}  {self.figures}  {'ok' if self.passed else 'FAILED'}"


def learning(agent: str, seed: int, scratch: Path, *, processes: int = 1) -> Iterator[Check]:
    """Train ``agent`` with the quickstart's config, then evaluate its checkpoint in a second process.

    The model is trained in so many ``processes``.
    """
    name = f"{agent}-{seed}" if processes == 1 else f"{agent}-{seed}-in-{processes}"
    began = time.monotonic()
    settings = (f"seed={seed}", f"run.dir={scratch}", f"run.name={name}", f"training.processes={processes}")
    agentrl("train", agent, "--config", CONFIG, *settings)
    summary = json.loads((scratch / name / "summary.json").read_text())
    before = (summary["reward_before"], summary["reward_before_greedy"])
    after = (summary["reward_after"], summary["reward_after_greedy"])
    yield Check(
        f"{agent}, seed {seed}, learns" + (f" in {processes} processes" if processes > 1 else ""),
        f"sampled {before[0]:.3f} to {after[0]:.3f}, greedy {before[1]:.3f} to {after[1]:.3f}",
        max(before) <= START_AT_MOST and min(after) >= END_AT_LEAST,
        time.monotonic() - began,
    )
    began = time.monotonic()
    again = json.loads(agentrl("eval", summary["checkpoint"], "--json"))
    measured = (again["reward"], again["reward_greedy"])
    yield Check(
        f"{agent}, seed {seed}, evaluates the same" + (f" in {processes} processes" if processes > 1 else ""),
        f"sampled {measured[0]:.3f}, greedy {measured[1]:.3f}",
        measured == after,
        time.monotonic() - began,
    )


def preset_learns(preset: str, staleness: int, scratch: Path) -> Check:
    """Train ``tiny`` with an algorithm, its episodes up to ``staleness`` updates old."""
    name = f"{preset}-{staleness}"
    began = time.monotonic()
    settings = [
        f"algorithm={preset}",
        f"rollout.max_staleness={staleness}",
        f"training.steps={PRESET_STEPS}",
        "evaluation.every=0",
        f"run.dir={scratch}",
        f"run.name={name}",
    ]
    if preset in MORE_KEYS:
        settings.append(MORE_KEYS[preset].format(scratch=scratch))
    agentrl("train", "math", *settings)
    summary = json.loads((scratch / name / "summary.json").read_text())
    before, after = summary["reward_before"], summary["reward_after"]
    return Check(
        f"{preset}, staleness {staleness}, learns",
        f"sampled {before:.3f} to {after:.3f}",
        after >= before + PRESET_RISE,
        time.monotonic() - began,
    )


def memory_plan(shape: str, scratch: Path, *settings: str) -> Check:
    """Two steps of a model of that shape on the CPU, in a process of its own, take what was planned for them."""
    began = time.monotonic()
    folder = random_model(shape, scratch / shape)
    command = [sys.executable, "-m", "tests.gpu.memory", str(folder), "training.device=cpu", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    planned, taken = found["planned"], found["taken"]
    return Check(
        f"memory of {shape}, {' '.join(settings)}",
        f"planned {planned / 1e6:,.0f} MB, taken {taken / 1e6:,.0f} MB",
        abs(planned - taken) <= max(MEMORY_WITHIN * taken, MEMORY_SMALL),
        time.monotonic() - began,
    )


def environment(name: str, module: str) -> Check:
    """Make the environment of a plugin whose framework is not installed here."""
    began = time.monotonic()
    agentrl("env", "create", name)
    (made,) = (found for found in json.loads(agentrl("env", "list", "--json"))["environments"] if found["name"] == name)
    return Check(
        f"env create {name}",
        f"{', '.join(made['agents'])} on Python {made['python_version']}, {module} not here",
        importlib.util.find_spec(module) is None,
        time.monotonic() - began,
    )


def blanked_tools(run: Path) -> Check:
    """A trained calculator whose tool results are blank has nothing to copy."""
    began = time.monotonic()
    checkpoint = json.loads((run / "summary.json").read_text())["checkpoint"]
    result = json.loads(agentrl("eval", checkpoint, "--json", f"agent={BLANKED}:CalculatorAgent"))
    measured = max(result["reward"], result["reward_greedy"])
    return Check(
        f"{run.name} with tool results blanked",
        f"{measured:.3f}",
        measured < BLANKED_BELOW,
        time.monotonic() - began,
    )


def agreement(agent: str, temperature: float, scratch: Path) -> Check:
    """At learning rate 0, sampler and learner give every token the same probability."""
    name = f"{agent}-at-rest-{temperature}"
    began = time.monotonic()
    settings = [
        "training.learning_rate=0",
        f"training.steps={STEPS_AT_REST}",
        f"rollout.temperature={temperature}",
        "tasks.eval=null",
        f"run.dir={scratch}",
        f"run.name={name}",
    ]
    agentrl("train", agent, *settings)
    rows = [line.metrics for line in open_run(scratch / name).steps()]
    ratio = max(abs(row["policy/ratio_mean"] - 1) for row in rows)
    divergence = max(abs(row["policy/mismatch_kl"]) for row in rows)
    return Check(
        f"{agent} at rest, temperature {temperature}",
        f"ratio off by {ratio:.1e}, mismatch KL {divergence:.1e}, {len(rows)} steps",
        len(rows) == STEPS_AT_REST and ratio <= RATIO_WITHIN and divergence < KL_BELOW,
        time.monotonic() - began,
    )


def agentrl(*arguments: object) -> str:
    """Run the command line in a process of its own and return its standard output."""
    command = [sys.executable, "-m", "agentrl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout
