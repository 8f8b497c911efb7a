"""What telling trackers, hooks and the rules of health costs a step, beside calling the same functions directly.

python -m tests.benchmarks.listeners --episodes 64 --plugins 3
"""

from __future__ import annotations

import argparse
import statistics
import time

from agentrl.config.health import HealthSection
from agentrl.health.findings import Health
from agentrl.health.rules import RULES
from agentrl.reporting.listener import Listener, settle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=64, help="finished episodes of a step")
    parser.add_argument("--plugins", type=int, default=3, help="plugins and trackers that are told of each")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    calls = options.episodes + 3  # Those of the batch, the step and the tracker's log.
    listeners = [Listener(f"plugin {number}", 60.0, print) for number in range(options.plugins)]
    metrics = {name: 0.5 for rule in RULES for name in rule.metrics}
    health = Health(HealthSection(), options.steps)
    told, direct, judged, heard = [], [], [], []

    def hear(episode: int) -> None:
        heard.append(episode)

    for step in range(1, options.steps + 1):
        began = time.perf_counter()
        for episode in range(calls):
            for listener in listeners:
                listener.tell("agentrl_episode_finished", lambda episode=episode: hear(episode))
        told.append(time.perf_counter() - began)
        settle(listeners)
        began = time.perf_counter()
        for episode in range(calls):
            for _ in listeners:
                hear(episode)
        direct.append(time.perf_counter() - began)
        began = time.perf_counter()
        health.step(step, metrics)
        judged.append(time.perf_counter() - began)
    for listener in listeners:
        listener.close()
    print(f"{calls} calls to each of {options.plugins} listeners, milliseconds a step (median):")
    for name, seconds in (("told, in threads", told), ("called directly", direct), ("rules of health", judged)):
        print(f"  {name:<18}{1000 * statistics.median(seconds):8.3f}")


if __name__ == "__main__":
    main()
