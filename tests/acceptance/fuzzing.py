"""Everything that is served, fuzzed for minutes by what its OpenAPI document says; see ``tests.gateway.fuzzing``.

Run by ``make acceptance``. ``--examples N`` says how many requests of each kind are sent to each operation, and
``--seed`` which. Prints a line for each, with the statuses that were answered; the exit code is 1 where one has failed.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.gateway.fuzzing import OPERATIONS, fuzz, target
from tests.gateway.test_fuzzing import BREAKABLE, ENDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.fuzzing", description=__doc__)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    failed = 0
    with target() as served:
        for method, path in (*(each for each in OPERATIONS if each != ENDS), ENDS):
            for broken in (True, False) if (method, path) in BREAKABLE else (False,):
                began = time.monotonic()
                try:
                    fuzz(served, method, path, broken=broken, known=True, examples=given.examples, seed=given.seed)
                    verdict = "ok"
                except BaseException as error:  # Several failures come as one group.
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    failed += 1
                    verdict = f"FAILED: {error}"
                statuses = dict(sorted(served.statuses[method, path, broken].items()))
                kind = "broken" if broken else "valid"
                took = f"{time.monotonic() - began:5.0f} s"
                print(f"{method:6} {path:40} {kind:6} {took}  {statuses}  {verdict}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
