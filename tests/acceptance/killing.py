"""Runs that are killed at random moments, resumed, and held to one that nothing stopped, to the bit.

Run by ``make acceptance``. ``--times N`` says how many runs of each kind are killed, and ``--seed`` when. Prints a line
for each; the exit code is 1 where one has come to anything else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.training.killing import Runs, assert_bounded, assert_the_same
from tests.warm import WarmInterpreter

BESIDE = ("rollout.max_staleness=2", "training.learning_rate=0.0003")
"""Steps that learn beside the rollout, whose numbers depend on how fast either is, so that only the bound is held."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.killing", description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="agentrl-killing-") as scratch:
        interpreter = WarmInterpreter(Path(scratch))
        runs = Runs(interpreter, Path(scratch))
        seconds = runs.whole("whole")
        expected = runs.trained("whole")
        print(f"a whole run takes {seconds:.1f} s, {expected.keys.total()} episodes", flush=True)
        for seed in range(given.seed, given.seed + given.times):
            for kind, settings in (("by turns", ()), ("beside", BESIDE)):
                name, began = f"{kind.replace(' ', '-')}-{seed}", time.monotonic()
                try:
                    killed = runs.killed_and_resumed(name, seed, seconds, *settings)
                    if settings:
                        runs.trained(name)
                        assert_bounded(runs.folder, name, 2)
                    else:
                        assert_the_same(runs.trained(name), expected)
                    verdict = f"killed {killed} times: ok"
                except AssertionError as error:
                    failed += 1
                    verdict = f"FAILED: {error}"
                print(f"{kind:8} seed {seed:3} {time.monotonic() - began:5.1f} s  {verdict}", flush=True)
        interpreter.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
