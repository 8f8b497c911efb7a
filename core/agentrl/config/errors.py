"""What can be wrong with a key of a configuration: the message for each error, with the fix."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from agentrl.config.keys import field_at, is_plain_union, key_names, known_keys, model_at
from agentrl.environ import PREFIX
from agentrl.errors import ConfigError, near_matches, one_line, shortened

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["config_error", "near_key", "unknown_key"]

_FOREIGN = {
    "AReaL": {
        "actor.behav_imp_weight_cap": "algorithm.correction.cap",
        "actor.c_clip": "algorithm.objective.dual_clip",
        "actor.eps_clip": "algorithm.objective.clip_low",
        "actor.eps_clip_higher": "algorithm.objective.clip_high",
        "actor.importance_sampling_level": "algorithm=gspo where it is sequence, and grpo where it is token",
        "actor.kl_ctl": "algorithm.penalties=[{name: kl, coefficient: …}]",
        "actor.overlong_reward_penalty": "algorithm.shaping=[{name: over_long, longest: …, margin: …}]",
        "actor.overlong_tokens": "algorithm.shaping, where it is the margin of over_long",
        "actor.ppo_n_minibatches": "training.minibatches",
        "actor.prox_logp_method": "algorithm.correction.proximal, which is recomputed or interpolated",
        "actor.reward_clip": "algorithm.shaping=[{name: clip, low: …, high: …}]",
        "actor.reward_scaling": "algorithm.shaping=[{name: scale, factor: …}]",
        "actor.use_decoupled_loss": "algorithm.correction=decoupled",
        "actor.group_size": "rollout.group_size",
        "rollout.max_head_offpolicyness": "rollout.max_staleness",
        "actor.optimizer.lr": "training.learning_rate",
        "actor.optimizer.lr_scheduler_type": "training.schedule",
        "actor.optimizer.weight_decay": "training.weight_decay",
        "actor.optimizer.gradient_clipping": "training.max_grad_norm",
        "actor.path": "model",
        "actor.mb_spec.max_tokens_per_mb": "training.tokens_per_batch",
        "cluster.fileroot": "run.dir",
        "evaluator.freq_steps": "evaluation.every",
        "experiment_name": "run.name",
        "gconfig.max_new_tokens": "rollout.max_tokens",
        "gconfig.n_samples": "rollout.group_size",
        "gconfig.temperature": "rollout.temperature",
        "rollout.consumer_batch_size": "rollout.tasks_per_step",
        "rollout.max_concurrent_rollouts": "rollout.concurrency",
        "rollout.openai.mode": "rollout.mode",
        "rollout.request_timeout": "inference.timeout",
        "saver.freq_steps": "training.checkpoint_every",
        "stats_logger": "trackers",
        "tokenizer_path": "model",
        "total_train_epochs": "training.steps, which counts optimiser steps",
        "total_train_steps": "training.steps",
        "train_dataset.batch_size": "rollout.tasks_per_step",
        "train_dataset.path": "tasks.train",
        "trial_name": "run.name",
        "valid_dataset.path": "tasks.eval",
        "workflow": "agent",
        "workflow_kwargs": "agent.kwargs",
    },
    "TRL": {
        "beta": "algorithm.penalties=[{name: kl, coefficient: …}]",
        "bf16": "training.precision=bfloat16",
        "delta": "algorithm.objective.dual_clip",
        "epsilon": "algorithm.objective.clip_low",
        "epsilon_high": "algorithm.objective.clip_high",
        "eval_dataset": "tasks.eval",
        "eval_steps": "evaluation.every",
        "gradient_accumulation_steps": "training.tokens_per_batch: a step takes as many passes as its tokens need",
        "importance_sampling_level": "algorithm=gspo where it is sequence, and grpo where it is token",
        "loss_type": "algorithm, which is grpo, dapo, dr_grpo or cispo",
        "lr_scheduler_type": "training.schedule",
        "mask_truncated_completions": "algorithm.filter=over_long",
        "max_completion_length": "rollout.max_tokens",
        "max_steps": "training.steps",
        "model_name_or_path": "model",
        "num_generations": "rollout.group_size",
        "num_train_epochs": "training.steps, which counts optimiser steps",
        "output_dir": "run.dir",
        "per_device_train_batch_size": "rollout.tasks_per_step, which counts tasks and not episodes",
        "report_to": "trackers",
        "reward_funcs": "reward",
        "save_steps": "training.checkpoint_every",
        "scale_rewards": "algorithm.advantage.scale",
        "train_dataset": "tasks.train",
        "use_vllm": "inference.backend=vllm",
        "vllm_importance_sampling_cap": "algorithm.correction.cap",
        "vllm_importance_sampling_correction": "algorithm.correction=truncated",
    },
    "prime-rl": {
        "batch_size": "rollout.tasks_per_step, which counts tasks and not episodes",
        "max_concurrent": "rollout.concurrency",
        "optim.lr": "training.learning_rate",
        "rollouts_per_example": "rollout.group_size",
        "sampling.max_tokens": "rollout.max_tokens",
        "sampling.temperature": "rollout.temperature",
        "seq_len": "training.tokens_per_batch",
        "trainer.optim.lr": "training.learning_rate",
    },
    "verl": {
        "actor_rollout_ref.actor.clip_ratio": "algorithm.objective.clip_low",
        "actor_rollout_ref.actor.clip_ratio_c": "algorithm.objective.dual_clip",
        "actor_rollout_ref.actor.clip_ratio_high": "algorithm.objective.clip_high",
        "actor_rollout_ref.actor.clip_ratio_low": "algorithm.objective.clip_low",
        "actor_rollout_ref.actor.entropy_coeff": "algorithm.penalties=[{name: entropy, coefficient: …}]",
        "actor_rollout_ref.actor.kl_loss_coef": "algorithm.penalties=[{name: kl, coefficient: …}]",
        "actor_rollout_ref.actor.loss_agg_mode": "algorithm.normalisation",
        "actor_rollout_ref.actor.optim.lr": "training.learning_rate",
        "actor_rollout_ref.actor.policy_loss.loss_mode": "algorithm.objective: clip, gspo, cispo or dppo",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": "training.tokens_per_batch",
        "actor_rollout_ref.actor.use_kl_loss": "algorithm.penalties=[{name: kl, coefficient: …}]",
        "actor_rollout_ref.model.path": "model",
        "actor_rollout_ref.rollout.n": "rollout.group_size",
        "actor_rollout_ref.rollout.name": "inference.backend",
        "actor_rollout_ref.rollout.temperature": "rollout.temperature",
        "data.max_response_length": "rollout.max_tokens",
        "data.train_batch_size": "rollout.tasks_per_step",
        "data.train_files": "tasks.train",
        "data.val_files": "tasks.eval",
        "trainer.default_local_dir": "run.dir",
        "trainer.experiment_name": "run.name",
        "trainer.logger": "trackers",
        "trainer.save_freq": "training.checkpoint_every",
        "trainer.test_freq": "evaluation.every",
        "trainer.total_training_steps": "training.steps",
    },
}
"""Keys of other trainers, with the key that means the same here, or with words that say what to set."""

_LONGEST_VALUE = 80
Origin = Callable[[str], str | None]
"""Where the value of a key came from."""


def config_error(
    error: ValidationError, model: type[BaseModel], *, at: str = "", origin: Origin = lambda _key: None
) -> ConfigError:
    """The first problem that ``error`` reports, with the key, the value, what was expected and where it was written.

    ``model`` is the model that was validated, ``at`` the key of the configuration that holds its values, and ``origin``
    tells where a key was written.
    """
    errors = error.errors(include_url=False)
    first, path = errors[0], _path(errors[0], model)
    more = len({tuple(_path(each, model)) for each in errors}) - 1
    if first["type"] == "extra_forbidden":
        return unknown_key(model, path, at=at, origin=origin, given=first["input"])
    key = ".".join((at, *path) if at else path)
    rest = f" (and {more} more)" if more else ""
    message = f"{_place(key, origin)}{_complaint(first, key, model, path)}{rest}"
    return ConfigError(message, fix=_fix(first, key, model, path), key=key)


def unknown_key(
    model: type[BaseModel],
    path: Sequence[str],
    *,
    at: str = "",
    origin: Origin = lambda _key: None,
    given: object = None,
) -> ConfigError:
    """The error for a key that ``model`` does not have at ``path``, with the key that may be meant.

    ``at`` and ``origin`` are as for ``config_error``. ``given`` is the value that was set at the key: what is below it
    may be a key of another trainer.
    """
    key = ".".join((at, *path) if at else path)
    if not at:
        for name, value in _leaves(key, given):
            if (fix := _answer(name, value)) is not None:
                return ConfigError(f"{_place(name, origin)}there is no key {name!r}", fix=fix)
    place = _place(key, origin)
    variable = place.startswith("environment ")
    return ConfigError(f"{place}there is no key {key!r}", fix=_near_keys(model, path, variable=variable))


def _place(key: str, origin: Origin) -> str:
    source = origin(key)
    return f"{source}: " if source else ""


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    """What is set at ``key`` and below it, by dotted names, the innermost first."""
    if isinstance(value, Mapping):
        for name, held in value.items():
            yield from _leaves(f"{key}.{name}", held)
    yield key, value


def _answer(key: str, value: object) -> str | None:
    """How this project writes ``key=value`` of another trainer; ``None`` where no trainer is known to have the key."""
    for trainer, keys in _FOREIGN.items():
        if (ours := keys.get(key)) is not None:
            is_key = re.fullmatch(r"[a-z_.]+", ours) and isinstance(value, str | int | float)
            return f"here {trainer}'s {key} is {ours}{f'={_written(value)}' if is_key else ''}"
    return None


def _written(value: object) -> str:
    """A scalar as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def near_key(model: type[BaseModel], name: str) -> str | None:
    """The dotted key that ``name`` may be meant for, or ``None``.

    ``name`` is compared with the last words of all keys, and with whole keys that have underscores for dots.
    """
    spelled = {key.replace(".", "_"): key for key in known_keys(model)}
    spelled |= {key.rpartition(".")[2]: key for key in known_keys(model)}
    near = difflib.get_close_matches(name, spelled, n=1, cutoff=0.8)
    return spelled[near[0]] if near else None


def _joined(model: type[BaseModel], name: str) -> str | None:
    """The dotted key that ``name`` spells with underscores for dots, or nearly so."""
    spelled = {key.replace(".", "_"): key for key in known_keys(model) if "." in key}
    near = difflib.get_close_matches(name, spelled, n=1, cutoff=0.9)
    return spelled[near[0]] if near else None


def _near_keys(model: type[BaseModel], path: Sequence[str], *, variable: bool) -> str:
    """Keys beside the unknown one with a similar name, else such keys anywhere, else all beside it."""
    parent = model_at(model, path[:-1])
    beside = near_matches(path[-1], key_names(parent) if parent else ())
    near = _joined(model, path[-1]) if len(path) == 1 else None
    if near is None and beside.startswith("did you mean"):
        words = [f"{key!r}" for key in sorted(key_names(parent) if parent else ()) if key in path[-1].split("_")]
        also = " or ".join(word for word in words if word not in beside)
        return f"{beside.removesuffix('?')} or {also}?" if also else beside
    near = near or near_key(model, path[-1])
    if near is None:
        return beside
    return f"did you mean {PREFIX}{near.upper().replace('.', '__')}?" if variable else f"did you mean {near!r}?"


def _path(error: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """The path of the error's key, without the member of a union that pydantic adds to it."""
    path = [str(name) for name in error["loc"]]
    while len(path) > 1 and field_at(model, path) is None and is_plain_union(field_at(model, path[:-1])):
        path.pop()
    return path


def _complaint(error: ErrorDetails, key: str, model: type[BaseModel], path: Sequence[str]) -> str:
    message = one_line(error["msg"])
    if error["type"] == "missing":
        return f"{key} is missing{_meaning(model, path)}"
    if error["type"] == "none_required":
        return f"{key} should be null, not {_shown(error['input'])}"
    if error["type"] == "value_error":
        reason = message.removeprefix("Value error, ")
        return f"{key}: {reason}" if key else reason
    if error["type"] == "model_type":
        message = f"Input should be {_form(model_at(model, path))}"
    if message.startswith("Input should be"):
        expected = message.removeprefix("Input").partition(", unable to")[0]
        return f"{key}{expected}, not {_shown(error['input'])}"
    return f"{key}={_shown(error['input'])}: {message[0].lower()}{message[1:]}"


def _form(section: type[BaseModel] | None) -> str:
    """How a section is written: parts have a short form."""
    name = section.model_fields.get("name") if section else None
    return "a name, or {name: …} with its keys" if name and name.is_required() else "keys with their values"


def _shown(value: object) -> str:
    """A value as YAML writes it, cut where it is long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return shortened(text, _LONGEST_VALUE)


def _meaning(model: type[BaseModel], path: Sequence[str]) -> str:
    """What a key is, as the first sentence of its help has it."""
    help_ = one_line(getattr(field_at(model, path), "description", None) or "")
    first = help_.partition(". ")[0].rstrip(".")
    return f": {first[0].lower()}{first[1:]}" if first else ""


def _fix(error: ErrorDetails, key: str, model: type[BaseModel], path: Sequence[str]) -> str | None:
    if error["type"] == "missing":
        return f"set {key}, or leave out what is set beside it" if len(path) > 1 else f"set {key}"
    if error["type"] == "none_required":
        return getattr(field_at(model, path), "description", None)
    if error["type"] == "list_type" and isinstance(error["input"], str):
        return f"write it as a list: [{error['input']}]"
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        return "put it in quotes to make it text"
    return _default(model, path)


def _default(model: type[BaseModel], path: Sequence[str]) -> str | None:
    field = field_at(model, path)
    if field is None or field.is_required():
        return None
    default = field.get_default(call_default_factory=False)
    return None if isinstance(default, BaseModel) else f"the default is {json.dumps(default, default=str)}"
