"""What each number of GPUs gives, and where the design stops holding: the tables of docs/scaling.md.

    python -m tests.benchmarks.scaling [--costs FILE] [--steps 8] [--measure]

Every figure follows from unit costs: what a GPU can do by its data sheet, which share of that is *assumed* to be
reached, and what was *measured* of the product's own parts on two cores. The seconds of episodes and of steps that they
make go through the simulated loop (``simulation.py``), which runs the rule and the buffer of the real one.

``--costs`` names a JSON file with tokens a second of one GPU as ``python -m tests.gpu`` prints them, which then stand
in the place of assumptions: ``{"qwen3-4b": {"learner": 9000, "engine": 3500}}``; the engine's are those at 64 rows.
``--measure`` prints the measured unit costs anew, which takes 3 GB and a minute.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tests.benchmarks.simulation import Load, simulate

from agentrl.learner.contract import Targets, TrainBatch
from agentrl.rollout.staleness import StalenessBound

__all__ = ["GPUS", "MODELS", "Costs", "Gpu", "Model", "Work", "arrangements", "limits", "lines", "plan"]

CALL_S = 1.7e-3
GPUS = (1, 2, 4, 8, 16, 64)
STEPS = 4
ROUNDS = 4
ROWS = 64
"""At which the engine's speed is measured by ``python -m tests.gpu``."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of a node of eight, from the data sheet of an H100 SXM: nothing of it was measured here."""

    flops: float = 989e12
    """Floating-point operations a second in bfloat16, dense."""
    memory: float = 80e9
    bandwidth: float = 3.35e12
    """Bytes a second of its memory."""
    node: float = 450e9
    """Bytes a second in one direction to the other GPUs of its node."""
    network: float = 50e9
    """Bytes a second in one direction to other nodes: 400 Gb/s a GPU."""
    per_node: int = 8


@dataclass(frozen=True)
class Costs:
    """What is reached of a data sheet: assumptions, which ``python -m tests.gpu`` replaces by measurements."""

    learner_mfu: float = 0.40
    """Share of the operations a second that the learner's passes reach."""
    learner_mfu_experts: float = 0.25
    """The same for a mixture of experts, whose products are smaller."""
    prefill_mfu: float = 0.50
    decode_bandwidth: float = 0.60
    """Share of the memory's bytes a second that decoding reaches."""
    decode_step: float = 0.004
    """Seconds of a decoding step in which no weight is read: scheduling, sampling, kernel launches."""
    links: float = 0.80
    """Share of the bytes a second that links reach."""
    usable: float = 0.90
    """Share of a GPU's memory that is given out."""
    measured: Mapping[str, Mapping[str, float]] | None = None
    """Tokens a second of one GPU by model, of its ``learner`` and of its ``engine`` at 64 rows."""


@dataclass(frozen=True)
class Host:
    """Measured on one core of the machine that the page was written on, most of it with ``--measure``."""

    pack_s: float = 0.024e-6
    """CPU seconds of a token that every rank spends on laying the whole batch out in passes."""
    token_bytes: float = 66.0
    """Bytes of a token of a batch on its way to a rank."""
    call_s: float = CALL_S
    """CPU seconds of the gateway for a recorded call of 256 tokens with log-probabilities: ``benchmarks.gateway``."""


@dataclass(frozen=True)
class Model:
    """A model by its configuration."""

    name: str
    layers: int
    width: int
    inner: int
    """Width of the MLP, or of one expert."""
    heads: int
    kv_heads: int
    pass_token: float
    """Bytes of a pass a token, with checkpointing, in bfloat16: measured by ``agentrl.learner.footprint``."""
    head_width: int = 128
    vocabulary: int = 151_936
    tied: bool = True
    experts: int = 1
    chosen: int = 1

    @property
    def expert_parameters(self) -> int:
        """Those of all MLPs."""
        return self.layers * self.experts * 3 * self.width * self.inner

    @cached_property
    def total(self) -> int:
        """How many parameters there are."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads) + 2 * self.head_width
        router = self.width * self.experts if self.experts > 1 else 0
        embedding = self.vocabulary * self.width * (1 if self.tied else 2)
        return self.layers * (attention + router + 2 * self.width) + self.expert_parameters + embedding + self.width

    @property
    def active(self) -> int:
        """Those that a token is multiplied with."""
        unread = 0 if self.tied else self.vocabulary * self.width
        return self.total - unread - self.expert_parameters * (self.experts - self.chosen) // self.experts

    @property
    def kv_bytes(self) -> int:
        """Of a token in the KV cache, in bfloat16."""
        return 4 * self.layers * self.kv_heads * self.head_width

    def config(self, *, few: bool = False) -> dict[str, object]:
        """As a configuration of transformers has it; with ``few``, with no more experts than a token chooses."""
        config: dict[str, object] = {
            "model_type": "qwen3" if self.experts == 1 else "qwen3_moe",
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
        }
        if self.experts == 1:
            return config | {"intermediate_size": self.inner}
        count = self.chosen if few else self.experts
        return config | {
            "moe_intermediate_size": self.inner,
            "num_experts": count,
            "num_experts_per_tok": self.chosen,
        }

    def read(self, rows: float) -> float:
        """Bytes of weights that a decoding step of so many rows reads: of experts those that a row has chosen."""
        untouched = (1 - self.chosen / self.experts) ** rows
        return 2 * (self.total - self.expert_parameters * untouched)


MODELS = (
    Model("qwen3-0.6b", layers=28, width=1024, inner=3072, heads=16, kv_heads=8, pass_token=120e3),
    Model("qwen3-4b", layers=36, width=2560, inner=9728, heads=32, kv_heads=8, pass_token=344e3),
    Model(
        "qwen3-30b-a3b",
        layers=48,
        width=2048,
        inner=768,
        heads=32,
        kv_heads=4,
        pass_token=463e3,
        tied=False,
        experts=128,
        chosen=8,
    ),
)

TRAINED = {"all weights": 18.0, "all, 8 bits": 12.0, "LoRA": 2.2}
"""Bytes a parameter of weights, gradients, masters and moments: see docs/memory.md."""


@dataclass(frozen=True)
class Work:
    """What a step trains: groups of episodes, each of some calls."""

    groups: int = 64
    """Of a step; ``on`` makes it more than that on many GPUs."""
    group_size: int = 8
    prompt: int = 512
    calls: int = 4
    completion: int = 1024
    """Tokens of a call, on average."""
    observation: int = 256
    """Tokens between two calls."""
    tool_s: float = 2.0
    """Seconds of the agent's own between two calls."""
    sigma: float = 0.5
    """Of the log-normal length of an episode."""
    pass_tokens: int = 8192

    def on(self, gpus: int) -> Work:
        """The same with 8 groups a GPU where that is more."""
        return replace(self, groups=max(self.groups, 8 * gpus))

    @property
    def sampled(self) -> int:
        return self.calls * self.completion

    @property
    def own(self) -> int:
        """Tokens of an episode beside its prompt."""
        return self.sampled + (self.calls - 1) * self.observation

    @property
    def trained(self) -> int:
        """Tokens that a step computes: a group's prompt once."""
        return self.groups * (self.prompt + self.group_size * self.own)

    @property
    def context(self) -> float:
        """The mean length of what a token looks back on."""
        return self.prompt + self.own / 2


@dataclass(frozen=True)
class Engine:
    """The sampling side: so many replicas of so many GPUs."""

    model: Model
    gpu: Gpu
    costs: Costs
    gpus: int

    @cached_property
    def parallel(self) -> int:
        """GPUs of a replica: the fewest whose memory the weights fill by four fifths at most, or all."""
        fits = (n for n in (1, 2, 4, 8) if 2 * self.model.total <= 0.8 * self.costs.usable * n * self.gpu.memory)
        return min(next(fits, 8), self.gpus)

    @property
    def fits(self) -> bool:
        return 2 * self.model.total <= 0.9 * self.costs.usable * self.parallel * self.gpu.memory

    @property
    def replicas(self) -> int:
        return self.gpus // self.parallel

    def most_rows(self, work: Work) -> int:
        """Episodes that the KV cache of a replica holds at once."""
        left = self.costs.usable * self.parallel * self.gpu.memory - 2 * self.model.total
        return max(1, int(left / (self.model.kv_bytes * work.context)))

    def step_s(self, rows: float, context: float) -> float:
        """Seconds in which each of ``rows`` completions gets a token."""
        moved = self.model.read(rows) + rows * context * self.model.kv_bytes
        reading = moved / (self.parallel * self.gpu.bandwidth * self.costs.decode_bandwidth)
        computing = 2 * self.model.active * rows / (self.parallel * self.gpu.flops * self.costs.prefill_mfu)
        return (max(reading, computing) + self.costs.decode_step) * self._slower

    @property
    def _slower(self) -> float:
        """How many times slower than assumed a measurement says that it is."""
        found = (self.costs.measured or {}).get(self.model.name, {}).get("engine")
        if found is None:
            return 1.0
        alone = Engine(self.model, self.gpu, Costs(**{**vars(self.costs), "measured": None}), self.parallel)
        return ROWS / alone.step_s(ROWS, 128.0) / found

    def episode_s(self, rows: float, work: Work) -> float:
        """Seconds of an episode of mean length with ``rows`` of them on its replica."""
        prefilled = work.prompt / work.group_size + (work.calls - 1) * work.observation
        flops = self.parallel * self.gpu.flops * self.costs.prefill_mfu
        prefill = 2 * self.model.active * prefilled / flops
        return work.sampled * self.step_s(rows, work.context) + rows * prefill + (work.calls - 1) * work.tool_s


@dataclass(frozen=True)
class Trainer:
    """The learning side: so many ranks."""

    model: Model
    gpu: Gpu
    costs: Costs
    gpus: int

    def trained(self, work: Work) -> str | None:
        """The first of ``TRAINED`` that fits; ``None`` where none does."""
        room = self.costs.usable * self.gpu.memory - self.pass_bytes(work.pass_tokens)
        return next((name for name, size in TRAINED.items() if size * self.model.total / self.gpus <= room), None)

    def pass_bytes(self, tokens: int) -> float:
        """What a pass takes on a rank beside its shards: activations, and two layers whose weights are put together."""
        whole = 2 * 6 * self.model.total / self.model.layers if self.gpus > 1 else 0.0
        return 2e9 + whole + tokens * self.model.pass_token

    def token_flops(self, work: Work) -> float:
        """Operations of a token, forward twice, since layers are computed anew, and backward."""
        attention = 4 * self.model.layers * self.model.heads * self.model.head_width * work.context
        return 4 * (2 * self.model.active + attention)

    def compute_s(self, work: Work) -> float:
        """Seconds of a full pass on one rank."""
        found = (self.costs.measured or {}).get(self.model.name, {}).get("learner")
        if found is not None:
            return work.pass_tokens / found
        mfu = self.costs.learner_mfu if self.model.experts == 1 else self.costs.learner_mfu_experts
        return work.pass_tokens * self.token_flops(work) / (self.gpu.flops * mfu)

    @property
    def link(self) -> float:
        """Bytes a second that each rank receives when shards are put together."""
        if self.gpus <= self.gpu.per_node:
            return self.gpu.node * self.costs.links
        return min(self.gpu.node, self.gpu.per_node * self.gpu.network) * self.costs.links

    def exchange_s(self, trained: str) -> float:
        """Seconds of a pass in which shards are on their way: weights twice, and gradients in float32 once."""
        each = 4 if trained == "LoRA" else 8
        return each * self.model.total * (1 - 1 / self.gpus) / self.link

    def step_s(self, work: Work, trained: str) -> float:
        """Seconds from a whole batch to served weights."""
        passes = -(-work.trained // (work.pass_tokens * self.gpus))
        moved = 30 * self.model.total * (0.02 if trained == "LoRA" else 1.0)
        update = moved / (self.gpus * self.gpu.bandwidth * self.costs.decode_bandwidth)
        send = 2 * self.model.total * (0.02 if trained == "LoRA" else 1.0) / (self.gpu.network * self.costs.links)
        host = HOST.pack_s * work.trained
        return passes * max(self.compute_s(work), self.exchange_s(trained)) + update + send + host


HOST = Host()


@dataclass(frozen=True)
class Plan:
    """How GPUs are used, and what comes of it."""

    gpus: int
    learner: int
    """GPUs of the learner; all of them where it shares them with the engine."""
    trained: str
    staleness: int
    parallel: int
    seconds: float
    """Of a step, as simulated."""
    bound: float
    """Of a step in which whichever of learner and workers takes longer never waits."""

    @property
    def shares(self) -> bool:
        return self.learner == self.gpus


def plan(
    model: Model, gpus: int, learner: int, work: Work, *, gpu: Gpu, costs: Costs, steps: int, exact: bool = True
) -> Plan | None:
    """What ``learner`` of ``gpus`` GPUs for the learner give, or all for both in turns; ``None`` where it does not fit.

    Without ``exact``, the seconds of a step are what bounds them.
    """
    shares = learner == gpus
    engine, trainer = Engine(model, gpu, costs, gpus if shares else gpus - learner), Trainer(model, gpu, costs, learner)
    trained = trainer.trained(work)
    if trained is None or not engine.fits:
        return None
    bound = StalenessBound(0 if shares else 1, work.groups)
    workers = min(bound.slots * work.group_size, engine.replicas * engine.most_rows(work))
    learning, episodes = trainer.step_s(work, trained), work.groups * work.group_size
    rows = workers / engine.replicas
    rolling = engine.episode_s(rows, work) * episodes / workers
    seconds = least = learning + rolling if shares else max(learning, rolling)
    for _ in range(ROUNDS if exact else 0):
        # A token takes what it takes with as many episodes in flight as there are on average, which depends on that.
        random = np.random.default_rng(0)
        lengths = random.lognormal(-(work.sigma**2) / 2, work.sigma, (work.groups * steps, work.group_size))
        taken = engine.episode_s(rows, work) * lengths
        seconds = simulate(Load(bound, work.group_size, workers, taken, [learning] * steps)).seconds / steps
        found = float(taken.sum()) / steps / (seconds - (learning if shares else 0.0)) / engine.replicas
        rows = (rows + min(found, workers / engine.replicas)) / 2
    return Plan(gpus, learner, trained, bound.max_staleness, engine.parallel, seconds, least)


def arrangements(model: Model, gpus: int, work: Work, gpu: Gpu, costs: Costs, steps: int) -> Iterator[Plan]:
    """The shared arrangement, and the best of those in which engine and learner have GPUs of their own."""

    def of(learner: int, *, exact: bool) -> Plan | None:
        return plan(model, gpus, learner, work, gpu=gpu, costs=costs, steps=steps, exact=exact)

    shared = of(gpus, exact=True)
    if shared is not None:
        yield shared
    several = max(1, gpus // 16)
    apart = [found for learner in range(several, gpus, several) if (found := of(learner, exact=False)) is not None]
    order = list(TRAINED)

    def slow(each: Plan) -> tuple[int, int, int]:
        """Of splits that bound a step within a tenth, that comes first which trains the most, then has most engines."""
        return round(float(np.log(each.bound)) * 10), order.index(each.trained), each.learner

    best = min(apart, key=slow, default=None)
    if best is not None and (found := of(best.learner, exact=True)) is not None:
        yield found


def lines(
    work: Work,
    gpu: Gpu,
    costs: Costs,
    steps: int,
    *,
    models: Sequence[Model] = MODELS,
    numbers: Sequence[int] = GPUS,
) -> Iterator[str]:
    """The tables of the page, a model each, in Markdown."""
    for model in models:
        yield f"### {model.name}"
        yield ""
        yield "| GPUs | learner + engine | trained | K | seconds a step | tokens a second | a GPU, to the first row |"
        yield "|---|---|---|---|---|---|---|"
        first: float | None = None
        for gpus in numbers:
            plans = list(arrangements(model, gpus, work.on(gpus), gpu, costs, steps))
            if not plans:
                yield f"| {gpus} | does not fit | | | | | |"
            for each in plans:
                rate = work.on(gpus).trained / each.seconds
                first = rate / gpus if first is None else first
                where = "shared" if each.shares else f"{each.learner} + {gpus - each.learner}"
                where += f", {each.parallel} a replica" if each.parallel > 1 else ""
                yield (
                    f"| {gpus} | {where} | {each.trained} | {each.staleness} | {_short(each.seconds)} | "
                    f"{_short(rate)} | {rate / gpus / first:.2f} |"
                )
        yield ""


def limits(work: Work, gpu: Gpu, costs: Costs, steps: int) -> Iterator[str]:
    """The table of what the design meets first, by model, in Markdown."""
    yield f"| | {' | '.join(model.name for model in MODELS)} |"
    yield f"|---{'|---' * len(MODELS)}|"
    columns = [list(_limits(model, work, gpu, costs, steps)) for model in MODELS]
    for row in zip(*columns, strict=True):
        yield f"| {row[0][0]} | {' | '.join(value for _, value in row)} |"


def _limits(model: Model, work: Work, gpu: Gpu, costs: Costs, steps: int) -> Iterator[tuple[str, str]]:
    trainer = Trainer(model, gpu, costs, 8)
    trained = trainer.trained(work) or "LoRA"
    room = costs.usable * gpu.memory - TRAINED[trained] * model.total / 8 - trainer.pass_bytes(0)
    yield "longest path of a pass on one of 8 ranks, tokens", _short(room / model.pass_token)
    # Half of it is what its tokens look back on, on average.
    long = replace(work, prompt=0, calls=1, completion=131_072)
    mfu = costs.learner_mfu if model.experts == 1 else costs.learner_mfu_experts
    long_s = 131_072 * trainer.token_flops(long) / (gpu.flops * mfu)
    yield "seconds of a path of 131,072 tokens on one rank", _short(long_s)
    far = Trainer(model, gpu, costs, 64)
    needed = far.exchange_s("all weights") * far.link / far.compute_s(work) / costs.links / gpu.per_node
    yield "GB/s of network a GPU, below which shards take longer than a pass of 8,192 tokens", _short(needed / 1e9)
    each = work.pass_tokens * model.chosen / model.experts
    yield "tokens that an expert gets of such a pass", _short(each) if model.experts > 1 else "-"
    most = work.on(64)
    best = min(arrangements(model, 64, most, gpu, costs, steps), key=lambda each: each.seconds)
    sampled = most.groups * most.group_size * most.sampled / best.seconds
    yield "sampled tokens a second at 64 GPUs", _short(sampled)
    yield "GPUs whose calls of 256 tokens keep a core of the gateway busy", _short(64 / (sampled / 256 * HOST.call_s))
    sent = most.trained * HOST.token_bytes * best.learner
    yield "GB that the run's process sends to the learner's ranks a step, at 64 GPUs", _short(sent / 1e9)
    chosen = most.groups * most.group_size * (work.prompt + work.own) * model.layers * model.chosen
    yield (
        "GB of chosen experts a step at 64 GPUs, for router replay",
        _short(chosen / 1e9) if model.experts > 1 else "-",
    )


def _short(number: float) -> str:
    """Two significant digits, with separators."""
    if not number:
        return "0"
    digits = max(0, 1 - int(np.floor(np.log10(abs(number)))))
    shown = round(number, 1 - int(np.floor(np.log10(abs(number)))))
    return f"{shown:,.{digits}f}"


def measured() -> Iterator[str]:
    """What ``Model.pass_token`` and ``Host`` hold, measured on this machine."""
    import pickle

    import torch
    from transformers import AutoConfig

    from agentrl.config.training import TrainingSection
    from agentrl.learner.footprint import measure_pass
    from agentrl.learner.packing import pack

    training = TrainingSection(gradient_checkpointing=True)
    for model in MODELS:
        # Of experts only as many are made as a token chooses, which makes no difference to what it keeps.
        found = measure_pass(
            AutoConfig.for_model(**model.config(few=True)), training, torch.device("cpu"), torch.bfloat16
        )
        each = found.layers * found.layer_token + found.token + found.working_token
        yield f"{model.name}: bytes of a pass a token {each:.0f}"
    batch = _batch(Work(groups=8))
    seconds = []
    for _ in range(3):
        began = time.process_time()
        passes = pack(batch.paths, batch.targets, 8192, forest=True)
        seconds.append(time.process_time() - began)
    tokens = sum(work.ids_RT.size for work in passes)
    yield f"packing: {1e6 * min(seconds) / tokens:.3f} us a token"
    yield f"a batch as it crosses to a rank: {len(pickle.dumps(batch, protocol=5)) / tokens:.0f} bytes a token"


def _batch(work: Work) -> TrainBatch:
    """A batch as ``work`` has it, of random tokens: each group shares its prompt."""
    random = np.random.default_rng(0)
    paths, path, depth = [], [], []
    for _ in range(work.groups):
        prompt = random.integers(0, 150_000, work.prompt)
        for _ in range(work.group_size):
            ids = np.concatenate([prompt, random.integers(0, 150_000, work.own)])
            at = len(prompt) - 1 + np.arange(work.own)
            path.append(np.full(len(at), len(paths)))
            depth.append(at)
            paths.append(ids)
    targets = Targets(
        path=np.concatenate(path),
        depth=np.concatenate(depth),
        token=np.concatenate([ids[work.prompt :] for ids in paths]),
        temperature=np.ones(work.own * len(paths)),
    )
    count = len(targets.path)
    return TrainBatch(
        paths=tuple(paths),
        targets=targets,
        logprob=np.full(count, -1.0),
        version=np.zeros(count, dtype=np.int64),
        advantage=random.normal(size=count),
        weight=np.full(count, 1 / count),
        call=targets.path,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--costs", type=Path, help="a JSON file of measured tokens a second")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps that are simulated")
    parser.add_argument("--measure", action="store_true", help="measure the unit costs of this machine")
    options = parser.parse_args()
    if options.measure:
        for line in measured():
            print(line)
        return
    costs = Costs(measured=None if options.costs is None else json.loads(options.costs.read_text()))
    for line in (*lines(Work(), Gpu(), costs, options.steps), *limits(Work(), Gpu(), costs, options.steps)):
        print(line)


if __name__ == "__main__":
    main()
