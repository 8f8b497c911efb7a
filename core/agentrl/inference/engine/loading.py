"""Loading: from a Hugging Face folder and the backend's settings to an engine that is known to be exact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from agentrl.config.section import Section
from agentrl.errors import BackendError, ConfigError, one_line, shortened
from agentrl.inference.contract import BackendContext
from agentrl.inference.engine.arithmetic import prefers_columns
from agentrl.inference.engine.cache import KVBlock, KVLayout, PrefixCache, round_up
from agentrl.inference.engine.engine import Engine, EngineLimits
from agentrl.inference.engine.fused import FusedNetwork
from agentrl.inference.engine.model import Decoder, Network, PlainNetwork, irreproducible, unsupported
from agentrl.inference.engine.sampler import DecodeBatch, TextDecoder
from agentrl.inference.engine.sharing import SharedModel
from agentrl.inference.families import Undescribed
from agentrl.inference.grammars import Grammars, available
from agentrl.inference.merging import load_whole
from agentrl.inference.sharing.contract import SharedWeights
from agentrl.machine import find_device, has_bfloat16_units
from agentrl.threads import use_threads

__all__ = ["TorchSettings", "cannot_share", "check_reproducible", "dtype_of", "load_engine", "threads_for"]

_LONGEST_DEFAULT = 32768
_PREFIX_TOKENS = 65536
_SMALL = 20_000_000
"""Parameters below which two threads gain nothing, and lose much where another process wants a core."""
_PROBE_TOKENS = 24
_LONGEST_PROBE = 512
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
"""Difference of a logprob, in float32 the largest and in 16 bits the mean: rounding stays below, a wrong mask or
position goes beyond. Measured with SmolLM2 in bfloat16: rounding moves some of the vocabulary by 0.6, and all of it by
0.06 on average; a wrong first token moves it by 0.7 on average."""


class TorchSettings(Section):
    """The keys beside ``inference.backend.name: torch``."""

    device: str = "auto"
    """Where to sample: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and KV cache. `auto` follows `training.precision`, bfloat16 on a CPU only where it has units for
    it (AMX, AVX512-BF16); where that is `auto` too, it is bfloat16 on CUDA and float32 elsewhere."""
    context_length: int | None = Field(None, ge=2)
    """Most tokens of prompt and completion together; null for what the model's config says, at most 32768."""
    max_batch_tokens: int = Field(2048, ge=1)
    """Most prompt tokens computed between two decoding steps."""
    kv_cache_tokens: int | None = Field(None, ge=1)
    """Most tokens of KV cache for running completions; null for what half of a GPU's
    free memory holds, or a quarter of the machine's."""
    prefix_cache_tokens: int | None = Field(None, ge=0)
    """Most tokens of KV cache kept for prompts that begin alike: 0 recomputes every prompt; null for a quarter of
    what the memory holds by default, at most 65536."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a step; null for one where the model is small, else torch's own number."""
    reproducible: bool | Literal["auto"] = "auto"
    """Whether a token's log-probability has the same bits whatever else is sampled beside it, in float32 on the CPU;
    `auto` is true where that is possible and the model is small."""
    share_weights: bool | Literal["auto"] = "auto"
    """Whether to sample with the memory of the learner's weights instead of a copy of them: the engine then pauses for
    the optimiser's step. It takes a learner in the same process, on the same device and computing in the same type;
    `auto` is true where that is so."""


def load_engine(context: BackendContext, settings: TorchSettings, weights: SharedWeights | None = None) -> Engine:
    """Returns an engine over the context's model folder, and sets the CPU threads of the calling thread for it.

    With ``weights`` it computes with their memory, and nothing is loaded, unless its model cannot be made of them.
    Raises ``BackendError`` for a model that cannot be loaded or run exactly, or a context length that it does not know.
    """
    adapter = None if context.adapter is None else context.adapter.folder
    device = find_device(settings.device, "inference.backend.device")
    dtype = dtype_of(settings, context.precision, device)
    shared = None if weights is None else _sharing(context, settings, weights, device, dtype)
    if shared is None:
        model = _load_model(context.model_folder if adapter is None else adapter, device, dtype)
    else:
        model = shared.model
    # What is reproducible was tried out under the number that torch tells.
    products_alone = dtype == torch.float32 and settings.reproducible is not True
    use_threads(settings.threads or threads_for(model), products_alone=products_alone)
    decoder = _decoder(model, settings, shared)
    context_length = _context_length(decoder, settings)
    tokenizer = _load_tokenizer(context.model_folder)
    grammars = Grammars(tokenizer, decoder.vocabulary) if tokenizer is not None and available() else None
    texts = cast("TextDecoder | None", tokenizer)
    limits = EngineLimits(
        decoder.vocabulary, context_length, texts, grammars, decoder.reproducible, _notes(decoder, context)
    )
    affordable = _kv_tokens_in_memory(decoder.layout)
    kv_tokens = settings.kv_cache_tokens or affordable
    batch = DecodeBatch(decoder.layout, context.max_concurrency, context_length, kv_tokens)
    kept = settings.prefix_cache_tokens
    prefixes = PrefixCache(min(affordable // 4, _PREFIX_TOKENS) if kept is None else kept)
    return Engine(
        decoder,
        limits,
        batch,
        prefixes,
        prefill_budget=settings.max_batch_tokens,
        version=context.version if shared is None else shared.weights.version,
        recomputes=context.in_flight == "recompute",
    )


def _sharing(
    context: BackendContext, settings: TorchSettings, weights: SharedWeights, device: torch.device, dtype: torch.dtype
) -> SharedModel | None:
    """The model over the memory of ``weights``; ``None``, told and given back, where a copy has to do.

    Raises ``BackendError`` where the settings say that a copy does not.
    """
    try:
        return SharedModel(context.model_folder, weights, device, dtype)
    except BackendError as error:
        if settings.share_weights is True:
            raise
        context.say(f"{error.message}; it keeps a copy of them")
        weights.give_back()
        return None


def _notes(decoder: Decoder, context: BackendContext) -> tuple[str, ...]:
    """What whoever starts the engine should know of it."""
    notes = []
    if decoder.plain_because is not None:
        name = type(decoder.model).__name__
        notes.append(f"the engine runs {name} by transformers' own forward, which is slower: {decoder.plain_because}")
    if context.precision == "bfloat16" and decoder.layout.dtype == torch.float32 and not has_bfloat16_units():
        notes.append(
            "the engine samples in float32 and not, as training.precision says, in bfloat16, for which this "
            "processor has no units"
        )
    return tuple(notes)


def threads_for(model: nn.Module) -> int:
    """Returns how many CPU threads a decoding step of ``model`` uses: one for a small model, else torch's number."""
    return 1 if _is_small(model) else torch.get_num_threads()


def dtype_of(settings: TorchSettings, precision: str, device: torch.device) -> torch.dtype:
    """Returns the type of weights and KV cache on ``device``, where the learner computes in ``precision``."""
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
        return dtype
    if device.type == "cuda":
        return torch.float32 if precision == "float32" else torch.bfloat16
    return torch.bfloat16 if precision == "bfloat16" and has_bfloat16_units() else torch.float32


def check_reproducible(settings: TorchSettings, precision: str) -> None:
    """Raise ``ConfigError`` where ``reproducible`` is asked for on a device or with numbers that cannot be."""
    if settings.reproducible is True:
        device = find_device(settings.device, "inference.backend.device")
        dtype = dtype_of(settings, precision, device)
        if device.type != "cpu" or dtype != torch.float32:
            raise ConfigError(
                f"inference.backend.reproducible=true needs float32 on the CPU; the device is {device}, "
                f"the type {str(dtype).removeprefix('torch.')} (inference.backend.dtype is {settings.dtype}, "
                f"training.precision {precision})",
                fix="set inference.backend.device to cpu and dtype to float32, or leave reproducible at auto",
            )


def cannot_share(reason: str) -> ConfigError:
    """Returns the error for ``share_weights`` where the engine cannot share the learner's weights, for ``reason``."""
    return ConfigError(
        f"inference.backend.share_weights=true: {reason}",
        fix="set it to auto or false, and the engine keeps a copy of the weights",
        key="inference.backend.share_weights",
    )


def _is_small(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) < _SMALL


def _load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model = load_whole(folder, dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BackendError(
            f"no causal language model loads from {folder}: {shortened(one_line(error), 160)}",
            fix="name a folder that AutoModelForCausalLM.from_pretrained takes",
        ) from error
    nn.Module.to(model, device).train(False)
    return model


def _decoder(model: PreTrainedModel, settings: TorchSettings, shared: SharedModel | None) -> Decoder:
    """A decoder that is reproducible as the settings want it. Raises ``BackendError`` where none is."""
    numbers = next(model.parameters())
    possible = numbers.device.type == "cpu" and numbers.dtype == torch.float32
    if settings.reproducible is True or (settings.reproducible == "auto" and possible and _is_small(model)):
        try:
            return _reproducible(model, shared)
        except BackendError:
            if settings.reproducible is True:
                raise
    return _exact(model, shared)


def _fused(model: PreTrainedModel, shared: SharedModel | None, *, reproducible: bool = False) -> FusedNetwork:
    # A small model's weights are in a cache however they lie, and are to give the same bits shared or not.
    turns = not _is_small(model)
    if shared is None:
        return FusedNetwork(model, reproducible=reproducible, turns=turns)
    turns = turns and shared.weights.turns and prefers_columns(next(model.parameters()))
    with torch.inference_mode(False), torch.no_grad():  # The learner computes gradients with these weights.
        return FusedNetwork(model, reproducible=reproducible, turns=turns, joins=False, settle=shared.settle)


def _reproducible(model: PreTrainedModel, shared: SharedModel | None) -> Decoder:
    """A decoder whose logits do not depend on the batch. Raises ``BackendError`` where there is none."""
    try:
        network = _fused(model, shared, reproducible=True)
    except Undescribed as error:
        own = f"{type(model).__name__} runs by its own forward, which computes a batch as a whole"
        raise irreproducible(f"{own}: {error}") from error
    decoder = Decoder(model, network, shared=shared)
    problem = _inexactness(decoder) or _dependence(decoder)
    if problem is not None:
        raise irreproducible(problem)
    return decoder


def _exact(model: PreTrainedModel, shared: SharedModel | None) -> Decoder:
    """A decoder over the fastest network that equals the plain forward. Raises ``BackendError`` where none does."""
    network: Network
    try:
        network = _fused(model, shared)
    except Undescribed as error:
        reason: str | None = str(error)
    else:
        decoder = Decoder(model, network, shared=shared)
        reason = _inexactness(decoder)
        if reason is None:
            return decoder
    decoder = Decoder(model, PlainNetwork(model), plain_because=reason, shared=shared)
    problem = _inexactness(decoder)
    if problem is not None:
        raise unsupported(model, problem)
    return decoder


def _dependence(decoder: Decoder) -> str | None:
    """How a row that is decoded token by token, alone, differs from one in a batch whose prompts were prefilled."""
    tokens = _PROBE_TOKENS // 2
    rows = np.random.default_rng(1).integers(0, decoder.vocabulary, (7, tokens))
    lengths = np.full(len(rows), tokens - 1)
    together = _decoded_logits(decoder, rows, lengths)[0]
    block = KVBlock(decoder.layout, 1, round_up(tokens))
    for position in range(tokens):
        alone = decoder.decode(rows[:1, position], np.array([position]), block)[0]
    if torch.equal(alone, together):
        return None
    return f"alone, a row's logits are off by {float((alone - together).abs().max()):.2g}"


def _inexactness(decoder: Decoder) -> str | None:
    """How two rows of different lengths, prefilled in pieces and decoded, differ from a plain forward, if they do."""
    beyond = [window + 8 for window in decoder.windows if window + 8 <= _LONGEST_PROBE]
    tokens = max([_PROBE_TOKENS, *beyond])
    rows = np.random.default_rng(0).integers(0, decoder.vocabulary, (2, tokens))
    lengths = np.array([tokens - 1, tokens // 2])
    try:
        found_BV = _decoded(decoder, rows, lengths)
    except Exception as error:
        reason = f"{type(error).__name__}: {shortened(one_line(error))}"
        return f"its forward does not take rows of different lengths, masked and with positions: {reason}"
    expected_BV = torch.stack([_plain(decoder, row[: n + 1]) for row, n in zip(rows, lengths, strict=True)])
    differences_BV = (found_BV - expected_BV).abs()
    exact = decoder.layout.dtype == torch.float32
    difference = float(differences_BV.max() if exact else differences_BV.mean())
    if difference <= _TOLERANCE[decoder.layout.dtype]:
        return None
    return f"decoded row by row its logprobs are off by {difference:.2g}"


def _decoded(decoder: Decoder, rows: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    return _decoded_logits(decoder, rows, lengths).float().log_softmax(-1)


def _decoded_logits(decoder: Decoder, rows: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    block = KVBlock(decoder.layout, len(rows) + 1, round_up(rows.shape[1] + 1))
    for piece in np.split(np.arange(rows.shape[1]), [rows.shape[1] // 3]):
        positions = np.minimum(piece, lengths[:, None])
        decoder.prefill(np.ascontiguousarray(rows[:, piece]), positions, block)
    return decoder.decode(rows[np.arange(len(rows)), lengths], lengths, block)


def _plain(decoder: Decoder, ids: np.ndarray) -> torch.Tensor:
    inputs = torch.from_numpy(ids)[None].to(decoder.device)
    logits: torch.Tensor = decoder.model(inputs, use_cache=False).logits[0, -1]
    return logits.float().log_softmax(-1)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, if it has one."""
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        return None
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _context_length(decoder: Decoder, settings: TorchSettings) -> int:
    """Prompt and sampled tokens together. Raises ``BackendError`` for a setting beyond what the model knows."""
    known: int | None = getattr(decoder.config, "max_position_embeddings", None)
    rope = getattr(decoder.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond this length the rotations of every row would change with the longest one's.
        known = rope["original_max_position_embeddings"]
    wanted = settings.context_length
    if wanted is None:
        return min(known or _LONGEST_DEFAULT, _LONGEST_DEFAULT)
    if known is not None and wanted > known:
        raise BackendError(
            f"inference.backend.context_length={wanted} is beyond the model's {known} positions",
            fix=f"set it to at most {known}",
        )
    return wanted


def _kv_tokens_in_memory(layout: KVLayout) -> int:
    """How many tokens of KV cache half of the GPU's free memory holds, or a quarter of the machine's."""
    if layout.device.type == "cuda":
        share = torch.cuda.mem_get_info(layout.device)[0] // 2
    else:
        share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return max(int(share) // layout.bytes_per_token, 1)
