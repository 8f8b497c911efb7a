"""The machine: processors, memory, disk and GPUs, compared with what training takes."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.config.models import Config
from agentrl.doctor.report import Finding, note, ok, problem, warning
from agentrl.errors import ConfigError, RunFolderError, one_line
from agentrl.machine import free_memory, human, usable_processors
from agentrl.runs.folder import filesystem_type, is_network_filesystem

if TYPE_CHECKING:
    from agentrl.doctor.examination import Case
    from agentrl.doctor.model import ModelSize

__all__ = ["Gpu", "Gpus", "gpu_findings", "machine", "nvidia_gpus"]

_TIGHT = 0.8
"""The share of the free memory above which activations may not fit."""
_PROMPT_TOKENS = 512
"""The length of a prompt in the estimate of what the engine holds."""
_HIDDEN_BY = "CUDA_VISIBLE_DEVICES"


def machine(case: Case) -> Iterator[Finding]:
    """Compare what this machine has with what training takes. Nothing is written."""
    memory, known = free_memory()
    processors = usable_processors()
    of = "free" if known else "in all"
    yield ok(f"{processors} CPUs, {human(memory)} of memory {of}", processors=processors, memory_bytes=memory)
    gpus = Gpus.seen()
    yield from gpu_findings(gpus, case.config)
    yield from _processes(case.config)
    if case.size is not None:
        on_gpu = gpus.free_bytes(case.config.training.device)
        yield _memory(case.size, case.config, memory if on_gpu is None else on_gpu, on_gpu=on_gpu is not None)
    yield from _disk(case)


def _memory(size: ModelSize, config: Config, free: int, *, on_gpu: bool) -> Finding:
    """Whether learner and engine fit. Loading a model that does not would end this process without a message."""
    at_once = config.inference.concurrency or config.rollout.concurrency
    tokens = at_once * (_PROMPT_TOKENS + (config.rollout.max_tokens or _PROMPT_TOKENS))
    of_each = config.training.processes if on_gpu else 1  # On the CPU the shares of all are in one memory.
    learner, engine = size.learner_bytes() // of_each, size.engine_bytes(tokens, 2 if on_gpu else 4)
    need, where = learner + engine, "of GPU memory" if on_gpu else "of memory"
    text = (
        f"training takes about {human(need)} of the {human(free)} {where} that are free: {human(learner)} for weights, "
        f"gradients and AdamW, {human(engine)} for the engine and {at_once} completions; "
        "activations come on top"
    )
    figures = {"learner_bytes": learner, "engine_bytes": engine, "free_bytes": free}
    if learner + size.engine_bytes(0, 2 if on_gpu else 4) > free:
        fix = "train a smaller model, or on a machine with more memory"
        return problem(text, fix=fix, like=ConfigError, blocks=True, **figures)
    if need > _TIGHT * free:
        return warning(text, fix="lower rollout.concurrency or training.tokens_per_batch", **figures)
    return ok(text, **figures)


def _processes(config: Config) -> Iterator[Finding]:
    """Whether there is a place for each of the processes that train the model."""
    if config.training.processes == 1:
        return
    try:
        from agentrl.training.placement import check_placement, placed
    except ImportError:  # Without torch, which another finding tells of.
        return
    try:
        check_placement(config, starts=True)  # Whether the scheduler starts any is told when it is built.
    except ConfigError as error:
        yield problem(error.message, fix=error.fix or "", like=ConfigError)
    else:
        yield ok(placed(config), processes=config.training.processes)


def _disk(case: Case) -> Iterator[Finding]:
    run = case.config.run
    folder = _existing_parent(run.dir)
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


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of this machine, as torch and as NVIDIA's driver see them."""

    usable: tuple[Gpu, ...] = ()
    complaint: str = ""
    """The warning of torch about a driver that it cannot use; empty without one."""
    torch: str | None = None
    """The version of torch; ``None`` where it is not installed."""
    cuda: str | None = None
    """The version of CUDA or ROCm that torch was built for; ``None`` for a CPU build."""
    apple: bool = False
    """Whether torch could use an Apple GPU."""
    present: tuple[str, ...] = ()
    """What the driver reports where torch can use none: ``NAME, driver VERSION`` for each GPU."""

    def free_bytes(self, device: str) -> int | None:
        """The free memory, in bytes, of the GPU that ``training.device`` means; ``None`` where it means none."""
        index = device.partition(":")[2] or "0"
        usable = device != "cpu" and index.isdigit() and int(index) < len(self.usable)
        return self.usable[int(index)].free_bytes if usable else None

    @classmethod
    def seen(cls) -> Gpus:
        """What torch and the driver say now."""
        try:
            import torch
        except (ImportError, OSError):
            return cls(present=nvidia_gpus())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            available = torch.cuda.is_available()
        return cls(
            usable=tuple(map(_gpu, range(torch.cuda.device_count()))) if available else (),
            complaint=one_line(said[0].message) if said else "",
            torch=torch.__version__,
            cuda=torch.version.cuda or torch.version.hip,
            apple=torch.backends.mps.is_available(),
            present=() if available else nvidia_gpus(),
        )


def _gpu(index: int) -> Gpu:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return Gpu(torch.cuda.get_device_name(index), free, total)


def nvidia_gpus() -> tuple[str, ...]:
    """The GPUs that NVIDIA's driver reports; empty where there is no driver, or where it cannot be asked."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(f"{pynvml.nvmlDeviceGetName(handle)}, driver {driver}" for handle in handles)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def gpu_findings(gpus: Gpus, config: Config) -> Iterator[Finding]:
    """The GPUs that training can use, or why it can use none."""
    for index, gpu in enumerate(gpus.usable):
        yield ok(
            f"GPU {index}: {gpu.name}, {human(gpu.free_bytes)} of {human(gpu.total_bytes)} free",
            gpu=gpu.name,
            free_bytes=gpu.free_bytes,
            total_bytes=gpu.total_bytes,
        )
    if gpus.usable and config.training.device == "cpu":
        yield warning("training.device=cpu leaves the GPU idle", fix="set training.device=auto")
    if gpus.usable:
        return
    if gpus.present and gpus.torch is not None:
        yield _unused(gpus)
    elif gpus.apple:
        yield note("the Apple GPU (MPS) is not used: models are trained and sampled on the CPU")
    else:
        yield note("no GPU: models are trained and sampled on the CPU")


def _unused(gpus: Gpus) -> Finding:
    there = f"{gpus.present[0]}, is there, but torch {gpus.torch}"
    if gpus.cuda is None:
        fix = "install a CUDA build of torch: pip install --force-reinstall torch, without a constraint on a CPU build"
        return warning(f"{there} is a build for the CPU", fix=fix, present=list(gpus.present))
    hidden = os.environ.get(_HIDDEN_BY)
    if hidden is not None and not hidden.strip("-1 "):
        return warning(f"{there} does not see it: {_HIDDEN_BY}={hidden!r}", fix=f"unset {_HIDDEN_BY}")
    reason = f" ({gpus.complaint})" if gpus.complaint else ""
    return warning(
        f"{there}, built for CUDA {gpus.cuda}, cannot use it{reason}",
        fix=f"update the driver, or install a torch that was built for an older CUDA than {gpus.cuda}",
        present=list(gpus.present),
    )


def _existing_parent(path: Path) -> Path:
    """The folder ``path``, or the nearest above it that exists."""
    folder = Path(os.path.expanduser(path)).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_disk(folder: Path) -> int:
    """The bytes that are free on the disk of ``folder``."""
    return shutil.disk_usage(folder).free
