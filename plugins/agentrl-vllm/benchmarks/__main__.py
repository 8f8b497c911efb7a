"""The speed of the vLLM backend on real servers, measured and printed; nothing here passes or fails.

    python -m benchmarks [NAME ...]

Run it in the plugin's folder. Every name is a module beside this one with a ``main``, run in a process of its own; by
default all of them, in turn. Each also runs alone, with options: ``python -m benchmarks.throughput --help``. vLLM is
that of ``VLLM_PYTHON``, else of the environment ``vllm``.

``throughput``
    Tokens a second of 64 episodes at once through agents, gateway and plugin, beside the same requests sent straight
    to the same server. To reach: 0.9 of it.
``updates``
    Seconds from the learner's step to the first token of its weights, part by part, idle and with 64 requests under
    way, for the model ``tiny`` and for one of 100 MB; beside it, what starting a server takes.
``prefix_cache``
    Share of the prompts' tokens that two servers take from their prefix caches in episodes of several turns, beside
    the most that whole blocks allow, and beside what is left where sessions are not kept on their server.
``transfers``
    Seconds that weights take to another process by a folder, by shared memory and by a connection, beside a copy of the
    same bytes in memory. It needs no vLLM.

Trust ratios, not numbers, and both only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

NAMES = ("throughput", "updates", "prefix_cache", "transfers")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; by default all")
    names = parser.parse_args().names
    for name in names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    # A process each: what one leaves behind, threads, caches or warm memory, is not measured by the next.
    codes = [
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode  # noqa: S603
        for name in names or NAMES
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
