"""The speed of agentrl, measured and printed; nothing here passes or fails.

    python -m tests.benchmarks [NAME ...]

Every name is a module beside this one with a ``main``, run in a process of its own; by default all of them,
in turn. Each also runs alone, with options: ``python -m tests.benchmarks.engine --help``.

``call``
    CPU milliseconds of one recorded chat call (3 messages, 16 sampled tokens, no logprobs), in process and over
    HTTP, beside the openai SDK's own floor: the same call answered from memory. Beside them the time that passes. To
    reach: in process within 1.5 times the floor; over HTTP, on a kept connection, within twice its CPU.
``checkpoint``
    Seconds of a checkpoint, whole and durable, beside a bare write of the weights with safetensors.
``engine``
    Tokens a second of the torch engine beside ``model.generate``, on equal lengths (64 requests of 32 tokens) and on
    ragged ones (256 requests over 64 slots, log-normal lengths capped at 128). To reach: 1 and 2 times it. Both
    beside what the matrix products alone would reach. To reach: 0.7 of it with the pretrained model. In float32, and
    in bfloat16 where the processor has units for it, with the mismatch KL. Then what reproducible numbers cost. To
    reach: 1.15 times a step of 64 rows without them.
``gateway``
    Server CPU and wall milliseconds of a recorded call over HTTP, whole and streamed, memory an open session, and the
    wait for a stream's first event beside the engine's first token. To reach: 1 ms for 16 tokens, 1.5 ms for 256 with
    log-probabilities at 64 clients, streamed twice that.
``learner``
    Tokens a second of an optimiser step, the forest beside padded rows, on 8 groups of 8 with a shared prompt of
    512 tokens. To reach: 3 times the rows.
``learner_limit``
    Tokens a second and peak memory of a learner's step, beside a plain transformers forward and backward and beside the
    step's matrix products alone; ``--precision``, ``--training whole lora`` and ``--prompt`` say of what. To reach: 0.7
    of the products.
``list_agents``
    Wall time and CPU of ``agentrl list-agents`` beside bare Python. To reach: under 150 ms.
``listeners``
    Milliseconds a step that telling trackers and hooks takes, and judging it by the rules of health. To reach: under 1.
``modes``
    Episodes a second of an agent of one call: inline, in warm workers, and with one process an episode. To reach: warm
    workers within 3 times inline, and at least 10 times one process an episode.
``proof``
    Milliseconds of the parts of the proof of an update, and its share of a training step. To reach: under 2 % of a
    step of the pretrained model.
``ranks``
    Seconds of a learner's step on one rank with FSDP beside the plain learner, and on two ranks of one thread beside
    one process of two; ``--model`` says of what. To reach: under 3 % more for FSDP, and less time on two ranks.
``schedulers``
    Seconds that a run takes to start and to end: in one process, with its model in two others, and under the schedulers
    of plugins that are installed.
``scale``
    CPU milliseconds of a recorded call with 64 and with 2,000 agents in flight, in two worker processes and inline, the
    waits of the calls, memory of an agent in flight, and a gateway with 10,000 open sessions. To reach: within 5 % of
    the call at 64.
``staleness``
    Throughput of the training loop, simulated with the rule and the buffer of the real one for up to 10,000 workers,
    beside what learner, workers and staleness bound allow; and the real loop beside its simulation. To reach: within
    5 % of it.
``scaling``
    What each number of GPUs gives, and where the design stops holding: the tables of docs/scaling.md, from unit costs.
``store``
    Milliseconds of every question to a store of 100,000 episodes, and the reader's memory; and of a step's commits,
    alone and beside a reader that asks as an open page does. To reach: 500 ms, 300 MB, and the same within noise.
``train_step``
    Seconds of one whole training step beside TRL's ``GRPOTrainer``: same model, prompts, groups and lengths, though
    here every completion passes through a real client; and where the step's time goes: clients, gateway, engine,
    learner. To reach: no slower than TRL by turns, and 0.7 of it with ``rollout.max_staleness=1``.
``transfer``
    Milliseconds of giving an engine new weights, each way beside a memory copy of the same bytes; update, memory and
    tokens a second of the torch engine with a copy of the learner's weights and with the learner's own.
``updates``
    Seconds from the learner's step to the first token of its weights, for a new request and for those under way.
``view``
    The page over a run of 100,000 episodes, which takes minutes to make: seconds from ``agentrl view`` to a page,
    milliseconds of each filter, memory of the server, and milliseconds of a commit with pages open and without. To
    reach: 2 s, 500 ms, 300 MB, and no difference beyond the noise.
``waiting``
    Wall time to the same number of episodes, by turns and with ``rollout.max_staleness=1``, of an agent whose tools
    wait as long as a step takes the learner. To reach: 0.95 of what no schedule can beat.

Where agentrl-smollm2 is installed, as in ``tox -e benchmarks``, ``engine``, ``learner``, ``learner_limit``,
``proof``, ``train_step``, ``transfer`` are measured on that pretrained model too, in fewer rounds.

Those of the vLLM backend, which need a server, are in ``plugins/agentrl-vllm/benchmarks``.

Every table shows the time that passes beside CPU: one without the other hides what waits. Trust ratios, not numbers,
and both only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.benchmarks.models import PRETRAINED, is_registered

NAMES = (
    *(
        "call",
        "checkpoint",
        "engine",
        "gateway",
        "learner",
        "learner_limit",
        "list_agents",
        "listeners",
        "modes",
        "proof",
    ),
    *("ranks", "scale", "schedulers", "staleness", "store", "train_step", "transfer", "updates", "view", "waiting"),
)
ON_THE_PRETRAINED = {
    "checkpoint": "--repeat 3",
    "engine": "--repeat 1",
    "learner": "--load short --threads 2 --repeat 2",
    "learner_limit": "--precision float32 bfloat16 --training whole lora --repeat 1",
    "proof": "--steps 1",
    "ranks": "--load short --repeat 3",
    "train_step": "--max-tokens 32 --blocks 1 --steps 3 --sides agentrl TRL",
    "transfer": "--repeat 3 --tokens 16",
    "updates": "--updates 3 --under-way 8",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; by default all")
    names = parser.parse_args().names
    for name in names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    # A process each: what one leaves behind, threads, caches or a warm heap, is not measured by the next.
    return max(_run(name, options) for name in names or NAMES for options in _rounds(name))


def _rounds(name: str) -> list[list[str]]:
    """The options of each time that a benchmark is run."""
    second = name in ON_THE_PRETRAINED and is_registered(PRETRAINED)
    return [[], [*ON_THE_PRETRAINED[name].split(), "--model", PRETRAINED]] if second else [[]]


def _run(name: str, options: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}", *options]).returncode


if __name__ == "__main__":
    sys.exit(main())
