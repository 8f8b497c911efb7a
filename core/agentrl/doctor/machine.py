"""The machine: processors, memory, disk and GPU, held against what training takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.config.models import Config
from agentrl.doctor.case import Case
from agentrl.doctor.findings import Finding, note, ok, problem, warning
from agentrl.doctor.gpu import Gpus, gpu_findings
from agentrl.doctor.memory import existing_parent, free_disk, free_memory, human
from agentrl.errors import ConfigError, RunFolderError
from agentrl.processors import usable_processors
from agentrl.runs.folder import filesystem_type, is_network_filesystem

if TYPE_CHECKING:
    from agentrl.doctor.size import ModelSize

__all__ = ["machine"]

_TIGHT = 0.8
"""Share of the free memory from which on activations may not fit."""
_PROMPT_TOKENS = 512
"""What the estimate takes for the prompt of a completion."""


def machine(case: Case) -> Iterator[Finding]:
    """What there is, and a problem where it cannot be enough; the disk is only looked at."""
    memory, known = free_memory()
    processors = usable_processors()
    of = "free" if known else "in all"
    yield ok(f"{processors} CPUs, {human(memory)} of memory {of}", processors=processors, memory_bytes=memory)
    gpus = Gpus.seen()
    yield from gpu_findings(gpus, case.config)
    if case.size is not None:
        on_gpu = gpus.free_bytes(case.config.training.device)
        yield _memory(case.size, case.config, memory if on_gpu is None else on_gpu, on_gpu=on_gpu is not None)
    yield from _disk(case)


def _memory(size: ModelSize, config: Config, free: int, *, on_gpu: bool) -> Finding:
    """Whether learner and engine fit. Loading what does not would end this process before it can say so."""
    tokens = config.rollout.concurrency * (_PROMPT_TOKENS + (config.rollout.max_tokens or _PROMPT_TOKENS))
    learner, engine = size.learner_bytes(), size.engine_bytes(tokens, 2 if on_gpu else 4)
    need, where = learner + engine, "of GPU memory" if on_gpu else "of memory"
    text = (
        f"training takes about {human(need)} of the {human(free)} {where} that are free: {human(learner)} for weights, "
        f"gradients and AdamW, {human(engine)} for the engine and {config.rollout.concurrency} completions; "
        "activations come on top"
    )
    figures = {"learner_bytes": learner, "engine_bytes": engine, "free_bytes": free}
    if learner + size.engine_bytes(0, 2 if on_gpu else 4) > free:
        fix = "train a smaller model, or on a machine with more memory"
        return problem(text, fix=fix, like=ConfigError, blocks=True, **figures)
    if need > _TIGHT * free:
        return warning(text, fix="lower rollout.concurrency or training.tokens_per_batch", **figures)
    return ok(text, **figures)


def _disk(case: Case) -> Iterator[Finding]:
    run = case.config.run
    folder = existing_parent(run.dir)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        text = f"run.dir={run.dir} cannot be made: {folder} is not a folder that can be written to"
        yield problem(text, fix="set run.dir to another folder", like=RunFolderError)
        return
    if run.name is not None and (Path(os.path.expanduser(run.dir)) / run.name).exists():
        text = f"run.name={run.name!r} is taken: {run.dir / run.name} exists"
        yield problem(text, fix="choose another run.name", like=ConfigError)
    yield _space(case, folder)
    if is_network_filesystem(folder):
        yield note(f"run.dir={run.dir} is on {filesystem_type(folder)}, where the episode store is slower")


def _space(case: Case, folder: Path) -> Finding:
    free, training = free_disk(folder), case.config.training
    saved = 1 + (training.steps - 1) // training.checkpoint_every if training.checkpoint_every else 1
    need = saved * case.size.checkpoint_bytes() if case.size is not None else 0
    text = f"{human(free)} of disk are free for run.dir={case.config.run.dir}"
    if case.size is not None:
        text += f"; {saved} checkpoint{'s' * (saved > 1)} take about {human(need)}"
    figures = {"disk_free_bytes": free, "checkpoints_bytes": need}
    if need > free:
        return warning(text, fix="raise training.checkpoint_every, or set run.dir to another disk", **figures)
    return ok(text, **figures)
