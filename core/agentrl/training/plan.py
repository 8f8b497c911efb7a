"""The memory plan of a run: what learner and engine will take, and whether it is there, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from agentrl.config.models import Config
from agentrl.config.training import LoraModel, OptimiserSection, TrainingSection
from agentrl.errors import AgentRLError, ConfigError, one_line, shortened
from agentrl.inference.adapter_folder import base_of
from agentrl.inference.engine.loading import TorchSettings, dtype_of
from agentrl.inference.engine.sharing import is_same
from agentrl.learner.adapters import AdapterPlan, plan_adapter
from agentrl.learner.folder import precision_on
from agentrl.learner.footprint import PassFootprint, measure_pass
from agentrl.machine import find_device, free_memory, human
from agentrl.training.learner_device import is_elsewhere, learner_device
from agentrl.training.phases import ASLEEP, engine_share, needs_of_engine, sampling_phase, set_aside

__all__ = ["MemoryPlan", "plan_memory", "planned"]

NONE: Mapping[str, Path] = {}
FEWEST_TOKENS = 512
"""The least that `training.tokens_per_batch=auto` is lowered to."""
PROMPT_TOKENS = 512
"""The length of a prompt, of which a plan knows nothing, in the estimate of what the engine holds."""
ALLOCATOR = {"cpu": 1.15, "cuda": 1.05}
"""What the allocator takes for each byte of tensors that come and go, since freed pieces do not fit the next ones."""
SCATTERED_BY_ADAPTER, SCATTERED_BY_CHECKPOINTING = 2.05, 2.7
"""What it takes on the CPU for each byte of the layers' tensors where large ones go while small ones that were made
among them stay: the C library gives the places between those neither to a larger tensor nor back. Measured with 135
million parameters: 2.13, 2.04 and 2.01 with an adapter and passes of 512, 1,024 and 2,048 tokens, and 2.6 and 2.8 with
checkpointing and 1,024 and 2,048."""
LIBRARIES = {"cpu": 50_000_000, "cuda": 500_000_000}
"""The bytes that the libraries take when they first compute: buffers of threads and kernels."""
PROCESS = 300_000_000
"""The bytes that each further process takes before it has loaded anything: the interpreter and the libraries."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run takes, by what for."""

    device: torch.device
    """Where the learner is."""
    parts: dict[str, int]
    """What there is on ``device``."""
    host: dict[str, int]
    """What there is in the memory of the CPU where that is another place."""
    free: int
    """The bytes that are free on ``device``."""
    host_free: int
    tokens: int
    """Those of the largest pass."""
    sampling: dict[str, int] = field(default_factory=dict)
    """What there is on ``device`` while an engine samples that sleeps while the learner steps; ``parts`` is then what
    there is during a step. Empty where no engine does."""
    processes: int = 1
    """Those that train the model together; ``parts`` are of one where each has a device of its own, else of all."""

    @property
    def total(self) -> int:
        """The most bytes that the run takes on ``device`` at one time."""
        return max(sum(self.parts.values()), sum(self.sampling.values()))

    @property
    def engine_share(self) -> int | None:
        """The bytes that an engine which sleeps during steps may take while it is awake; ``None`` without one."""
        return engine_share(self.sampling, self.free) if self.sampling else None

    @property
    def spare(self) -> int:
        """What is left of the free memory where that is scarcest; below 0 where the run does not fit."""
        return min(self.free - self.total, self.host_free - sum(self.host.values()))

    def __str__(self) -> str:
        where = "memory" if self.device.type == "cpu" else f"memory of {self.device}"
        if self.processes > 1:
            where += f", of {self.processes} processes" if self.device.type == "cpu" else ", and of each other process"
        text = f"{where}: about {human(self.total)} of the {human(self.free)} that are free: {_listed(self.parts)}"
        if self.sampling:
            text += f" during a step, and {_listed(self.sampling)} while the engine samples"
        if self.host:
            text += f"; and {human(sum(self.host.values()))} of the CPU's: {_listed(self.host)}"
        return f"{text}; {human(self.spare)} to spare" if self.spare >= 0 else f"{text}; {human(-self.spare)} too much"


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {human(size)}" for name, size in parts.items() if size)


@dataclass(frozen=True)
class _Sizes:
    """What a plan knows of a model, from its config alone."""

    config: PreTrainedConfig

    @cached_property
    def total(self) -> int:
        """How many parameters it has."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)  # type: ignore[no-untyped-call]
        return int(model.num_parameters())

    @cached_property
    def gathered(self) -> tuple[int, int]:
        """Of a model that is spread over processes, the parameters that are put together for a whole pass, and those
        of its largest layer, which are put together for as long as that is computed."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)  # type: ignore[no-untyped-call]
        layers = [
            sum(weight.numel() for weight in layer.parameters())
            for layer in model.modules()
            if isinstance(layer, GradientCheckpointingLayer)
        ]
        return self.total - sum(layers), max(layers, default=0)

    @property
    def kv_numbers(self) -> int:
        """The numbers that one token takes in the KV cache."""
        text = self.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(2 * text.num_hidden_layers * heads * width)


@cache
def _sizes(folder: Path) -> _Sizes:
    return _Sizes(AutoConfig.from_pretrained(base_of(folder)))


@cache
def _adapter(folder: Path, written: str) -> AdapterPlan:
    return plan_adapter(folder, LoraModel.model_validate_json(written))


@cache
def _footprint(folder: Path, written: str, device: torch.device, dtype: torch.dtype) -> PassFootprint:
    return measure_pass(_sizes(folder).config, TrainingSection.model_validate_json(written), device, dtype)


def plan_memory(
    config: Config,
    folder: Path,
    *,
    beside: Mapping[str, Path] = NONE,
    samples: bool = True,
    prompt_tokens: int = PROMPT_TOKENS,
    tokens: int | None = None,
) -> MemoryPlan:
    """Return what training the model in ``folder`` takes, without loading it.

    ``beside`` has the folders of the frozen models that there are beside it, by what they are, ``samples`` says whether
    there is an engine, ``prompt_tokens`` is the length of a prompt, and ``tokens`` that of a pass, by default
    ``training.tokens_per_batch``. The layers' memory is measured: see ``agentrl.learner.footprint``. Raises what
    transformers raises for a folder that it does not know.
    """
    training, sizes = config.training, _sizes(folder)
    device = learner_device(config)
    dtype = precision_on(device, training.precision)
    tokens = training.pass_tokens if tokens is None else tokens
    adapter = None if training.lora is None else _adapter(folder, training.lora.model_dump_json())
    trained = sizes.total if adapter is None else adapter.trained
    weights = sizes.total + (0 if training.lora is None else trained)
    passing = _pass_bytes(folder, training, device, dtype, tokens)
    others = {name: _sizes(each).total * dtype.itemsize for name, each in beside.items()}
    if training.processes > 1:
        together = device.type == "cpu" and not is_elsewhere(config)
        parts, host = _of_processes(training, together, dtype, sizes, trained)
        count = training.processes if together else 1
        parts |= others | {f"a pass of {tokens:,} tokens in each": count * passing}
    else:
        offload = training.optimiser.offload
        optimiser = {
            "gradients": 4 * trained,
            "optimiser": (8 if training.optimiser.bits == 32 else 2) * trained,
            "float32 masters": 4 * trained if offload or dtype != torch.float32 else 0,
        }
        parts, host = {"weights": weights * dtype.itemsize}, dict(optimiser) if offload else {}
        if not offload:
            parts |= optimiser
        parts |= others
        parts[f"a pass of {tokens:,} tokens"] = passing
    if samples and config.inference.backend.name == "torch":
        where, engine = _engine(config, sizes, prompt_tokens, (device, dtype), adapter)
        target = parts if where.type == device.type else host
        target["engine"] = engine
    sampling: dict[str, int] = {}
    if samples and device.type == "cuda" and config.inference.backend.options.get("colocate") is True:
        states: dict[str, int] = {
            name: parts[name] for name in ("gradients", "optimiser", "float32 masters") if name in parts
        }
        sampling = _sampling(config, sizes, parts, states, prompt_tokens)
        host |= {name: training.processes * size for name, size in set_aside(states).items()}
        parts["the engine, asleep"] = ASLEEP
    host_free = free_memory()[0]
    free = host_free if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    return MemoryPlan(device, parts, host, free, host_free, tokens, sampling, training.processes)


def _sampling(
    config: Config, sizes: _Sizes, parts: Mapping[str, int], optimiser: Mapping[str, int], prompt_tokens: int
) -> dict[str, int]:
    """What there is on the device while an engine samples, in 16 bits, that sleeps while the learner steps."""
    length = prompt_tokens + (config.rollout.max_tokens or prompt_tokens)
    kv = config.rollout.concurrency * length * sizes.kv_numbers * torch.bfloat16.itemsize
    engine = needs_of_engine(sizes.total * torch.bfloat16.itemsize, kv)
    return {**sampling_phase(parts, optimiser, engine), "libraries": LIBRARIES["cuda"]}


def _of_processes(
    training: TrainingSection, together: bool, dtype: torch.dtype, sizes: _Sizes, trained: int
) -> tuple[dict[str, int], dict[str, int]]:
    """What the processes hold that train ``trained`` parameters together, but for their passes: all of them, where they
    are ``together`` in one memory, and else each; and in the CPU's memory where that is another place."""
    count, frozen = training.processes, 0 if training.lora is None else sizes.total
    # The shares of what is trained are kept in float32 and are their own masters.
    shares = {"weights": frozen * dtype.itemsize + 4 * trained, "gradients": 4 * trained, "optimiser": 8 * trained}
    whole, layer = sizes.gathered
    # The weights of the layer that is computed and of the next one, and the gradients of one.
    gathered = (whole + 2 * layer) * dtype.itemsize + (0 if frozen else 4 * (whole + layer))
    libraries = {"libraries": count * PROCESS}
    if together:
        return shares | {"layers put together in each": count * gathered} | libraries, {}
    own = {"layers put together": gathered}
    if training.optimiser.offload:
        return own, shares | libraries
    return {name: -(-size // count) for name, size in shares.items()} | own, libraries


def _pass_bytes(folder: Path, training: TrainingSection, device: torch.device, dtype: torch.dtype, tokens: int) -> int:
    """What a pass takes with what the allocator loses, and what libraries take."""
    measured = TrainingSection(gradient_checkpointing=training.gradient_checkpointing, lora=training.lora)
    footprint = _footprint(folder, measured.model_dump_json(), device, dtype)
    lost, libraries = ALLOCATOR[device.type], LIBRARIES[device.type]
    if device.type != "cpu" or not (training.gradient_checkpointing or training.lora):
        return int(footprint.bytes(tokens) * lost) + libraries
    scattered = SCATTERED_BY_CHECKPOINTING if training.gradient_checkpointing else SCATTERED_BY_ADAPTER
    passing = int(footprint.layer_bytes(tokens) * scattered + footprint.head_bytes(tokens) * lost) + libraries
    if training.gradient_checkpointing:  # A model of few layers loses more among its tensors than they save.
        kept = training.model_copy(update={"gradient_checkpointing": False})
        passing = min(passing, _pass_bytes(folder, kept, device, dtype, tokens))
    return passing


def _engine(
    config: Config,
    sizes: _Sizes,
    prompt_tokens: int,
    learner: tuple[torch.device, torch.dtype],
    adapter: AdapterPlan | None,
) -> tuple[torch.device, int]:
    """Where the torch engine is, and the bytes of its own weights and of the KV of as many completions as run at once.

    ``learner`` is where that has its weights and in which type. What the engine shares with it is not counted again.
    """
    settings = TorchSettings.model_validate(config.inference.backend.options)
    device = find_device(settings.device, "inference.backend.device")
    dtype = dtype_of(settings, config.training.precision, device)
    known = getattr(sizes.config.get_text_config(), "max_position_embeddings", None) or 32768
    context = settings.context_length or min(known, 32768)
    length = min(context, prompt_tokens + (config.rollout.max_tokens or prompt_tokens))
    at_once = config.inference.concurrency or config.rollout.concurrency
    kv_tokens = min(at_once * length, settings.kv_cache_tokens or 1 << 62)
    own = sizes.total
    together = config.training.processes == 1 and is_same(device, learner[0]) and dtype == learner[1]
    if together and settings.share_weights is not False:
        own = 0 if adapter is None else adapter.adapted
    return device, (own + kv_tokens * sizes.kv_numbers) * dtype.itemsize


def planned(
    config: Config,
    folder: Path,
    note: Callable[[str], None],
    *,
    beside: Mapping[str, Path] = NONE,
    samples: bool = True,
) -> Config:
    """Return ``config`` with ``training.tokens_per_batch`` as a number, and tell ``note`` what the run takes.

    ``beside`` and ``samples`` are as for ``plan_memory``. Raises ``ConfigError`` where the run does not fit the memory,
    with the settings under which it would; what other machines have is not known, and nothing refused then.
    """
    try:
        plan = _fitting(config, folder, beside, samples=samples)
    except AgentRLError:
        raise
    except Exception as error:  # Whatever a model of somebody else's raises: what it takes is then not known.
        note(f"memory: what the run takes is not known beforehand: {shortened(one_line(error))}")
        return config
    if is_elsewhere(config):
        each = "each process of the learner" if config.training.processes > 1 else "the learner"
        where = f"where scheduler.type={config.scheduler.type} places it, whose memory is not known here"
        note(f"memory: {each} takes about {human(plan.total)} {where}: {_listed(plan.parts)}")
    else:
        note(str(plan))
    return _trained_by(config, tokens_per_batch=plan.tokens)


def _fitting(config: Config, folder: Path, beside: Mapping[str, Path], *, samples: bool) -> MemoryPlan:
    automatic = config.training.tokens_per_batch == "auto"
    plan = plan_memory(config, folder, beside=beside, samples=samples)
    if is_elsewhere(config):
        return plan
    while automatic and plan.spare < 0 and plan.tokens > FEWEST_TOKENS:
        plan = plan_memory(config, folder, beside=beside, samples=samples, tokens=plan.tokens // 2)
    if plan.spare >= 0:
        return plan
    fix = "train a smaller model, or on a machine with more memory"
    for settings, changes in _savings(config.training, plan):
        # An adapter needs no reference beside it: the model under it is that.
        left = {name: each for name, each in beside.items() if name != "reference" or "lora" not in changes}
        if plan_memory(_trained_by(config, **changes), folder, beside=left, samples=samples).spare >= 0:
            fix = f"set {' '.join(settings)}"
            break
    raise ConfigError(f"the run does not fit the {plan}", fix=fix, key="training.tokens_per_batch")


def _trained_by(config: Config, **changes: object) -> Config:
    return config.setting("training", config.training.model_copy(update=changes))


def _savings(training: TrainingSection, plan: MemoryPlan) -> Iterator[tuple[list[str], dict[str, object]]]:
    """Settings that save memory, with what they change, the least change first."""
    powers = (1 << exponent for exponent in reversed(range(training.pass_tokens.bit_length())))
    fewer = [size for size in powers if FEWEST_TOKENS <= size < training.pass_tokens]
    steps: list[tuple[str, dict[str, object]]] = []
    if not training.gradient_checkpointing:
        steps.append(("training.gradient_checkpointing=true", {"gradient_checkpointing": True}))
    if plan.device.type == "cuda" and not training.optimiser.offload:
        offload = OptimiserSection(bits=training.optimiser.bits, offload=True)
        steps.append(("training.optimiser.offload=true", {"optimiser": offload}))
    elif training.optimiser.bits == 32 and training.processes == 1:
        steps.append(("training.optimiser.bits=8", {"optimiser": OptimiserSection(bits=8)}))
    if training.lora is None:
        steps.append(("training.lora=16", {"lora": LoraModel()}))
    if plan.device.type == "cpu" and training.precision != "bfloat16":
        steps.append(("training.precision=bfloat16", {"precision": "bfloat16"}))
    settings: list[str] = []
    changes: dict[str, object] = {}
    for size in fewer:
        yield [f"training.tokens_per_batch={size}"], {"tokens_per_batch": size}
    for setting, change in steps:
        settings, changes = [*settings, setting], {**changes, **change}
        yield settings, changes
        for size in fewer:
            yield [*settings, f"training.tokens_per_batch={size}"], {**changes, "tokens_per_batch": size}
