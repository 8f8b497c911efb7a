"""The model: its folder and size, its tokenizer and renderer, and whether conversations keep their token ids.

Where a chat template never changes what it has written, every turn of a conversation extends the ids before it, and
shared history is computed and stored once. ``walk`` lets a conversation grow turn by turn, as an agent would, and says
of each continuation whether it does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentrl.doctor.report import Finding, note, ok, problem, warning
from agentrl.errors import AgentRLError, ConfigError, GatewayError, one_line, shortened
from agentrl.inference.adapter_folder import base_of
from agentrl.inference.model_folder import find_model
from agentrl.learner.folder import stored_dtype
from agentrl.tokens.probes import TOOLS
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.template import ChatTemplate, Message, Tools
from agentrl.training.backends import is_chat, untrainable
from agentrl.training.parts import load_chat

if TYPE_CHECKING:
    from agentrl.doctor.examination import Case

__all__ = ["Continuation", "ModelSize", "model", "model_size", "tools", "walk"]

_BY_TEMPLATE = ("auto", "default")
"""The values of ``model.renderer`` that follow the template."""
_TRAINED = {"weights": 4, "gradients": 4, "optimiser": 8}
"""The bytes that a parameter takes in the learner: float32, and the two moments of AdamW."""
_APPEND_ONLY = "use a template that never changes what it has written, or name a renderer by hand: model.renderer"
_SHOWN_TOKENS = 12
"""How many tokens of a rewritten history are quoted."""


def model(case: Case) -> Iterator[Finding]:
    """Find the model, its size and its renderer, and let conversations grow in its template.

    Raises ``ConfigError`` for a model that is not found or not known, for one without a tokenizer that can chat, and
    for one behind an endpoint, which has no folder and cannot be trained.
    """
    if _is_behind_endpoint(case):
        raise untrainable(case.config)
    name = case.config.model.name
    case.doing(f"looking for {name}, which is downloaded where it is not on this machine")
    case.folder = find_model(case.plugins, case.config.model)
    case.size = size = model_size(case.folder)
    yield ok(
        f"{name}: {size.kind} of {size.parameters / 1e6:,.1f} M parameters, in {case.folder}",
        folder=str(case.folder),
        parameters=size.parameters,
        context_length=size.context_length,
    )
    case.doing("choosing a renderer")
    case.renderer = renderer = load_chat(case.folder, case.config.model).renderer
    how = "found by comparing each with the chat template" if case.config.model.renderer == "auto" else "as configured"
    yield ok(
        f"renderer {renderer.name}, {how}; {len(renderer.vocabulary.get_vocab()):,} tokens", renderer=renderer.name
    )
    yield tools(renderer)
    if renderer.day is not None:
        day = renderer.day.isoformat()
        yield note(
            f"its chat template writes the date, {day} in every prompt of a run; model.date names another", date=day
        )
    if not renderer.vocabulary.chat_template:
        yield note("its tokenizer has no chat template to compare the renderer with, so the renderer alone decides")
    elif case.config.model.renderer not in _BY_TEMPLATE and renderer.warning is not None:
        yield warning(renderer.warning, fix="set model.renderer=auto")
    else:
        case.doing("rendering a conversation turn by turn")
        yield from _prefixes(renderer, ChatTemplate(renderer.vocabulary, repr(name), renderer.day))


def tools(renderer: Renderer) -> Finding:
    """Whether agents with tools can be served; whether the agent has any shows itself only when it runs."""
    able = renderer.abilities
    if able.tools:
        return ok("agents with tools: definitions, calls and results reach the prompt, and calls are read", tools=True)
    lost = able.lost()
    because = f"never puts {lost} into the prompt" if lost else "writes calls in a form that cannot be read"
    return note(f"agents with tools are refused: its chat template {because}; see model.chat_template", tools=False)


def _is_behind_endpoint(case: Case) -> bool:
    try:
        return is_chat(case.config, case.plugins)
    except AgentRLError:  # An unknown backend is reported with the other names, in the section config.
        return False


@dataclass(frozen=True, slots=True)
class ModelSize:
    """How large a model is, and what its training takes."""

    kind: str
    """The ``model_type`` of its configuration."""
    parameters: int
    kv_values: int | None
    """The numbers that one token takes in the KV cache; ``None`` where layers are not of attention."""
    context_length: int | None
    """The most positions that it was built for, where its configuration says so."""
    stored_bytes: int
    """The bytes that a parameter takes in the model's folder, and in a checkpoint."""

    def learner_bytes(self) -> int:
        """The bytes that the learner holds between passes; activations come on top."""
        return self.parameters * sum(_TRAINED.values())

    def engine_bytes(self, tokens: int, width: int) -> int:
        """The bytes that an engine holds with ``tokens`` in its KV cache, in numbers of ``width`` bytes."""
        return (self.parameters + tokens * (self.kv_values or 0)) * width

    def checkpoint_bytes(self) -> int:
        """The bytes of a checkpoint: weights, the float32 ones too where those differ, and the moments of AdamW."""
        masters = 0 if self.stored_bytes == _TRAINED["weights"] else _TRAINED["weights"]
        return self.parameters * (self.stored_bytes + masters + _TRAINED["optimiser"])


def model_size(folder: Path) -> ModelSize:
    """The size of the model in ``folder``, found without loading its weights.

    Raises ``ConfigError`` for a model that transformers cannot build.
    """
    try:
        config = AutoConfig.from_pretrained(base_of(folder))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"model folder {folder} holds no causal language model that transformers knows: "
            f"{shortened(one_line(error))}",
            fix="name a model that AutoModelForCausalLM loads, or update transformers",
        ) from error
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    width = getattr(text, "head_dim", None)
    if width is None and heads and getattr(text, "hidden_size", None):
        width = text.hidden_size // text.num_attention_heads
    layers = getattr(text, "num_hidden_layers", None)
    return ModelSize(
        kind=str(config.model_type),
        parameters=model.num_parameters(),
        kv_values=2 * layers * heads * width if layers and heads and width else None,
        context_length=getattr(text, "max_position_embeddings", None),
        stored_bytes=stored_dtype(folder).itemsize,
    )


def _prefixes(renderer: Renderer, template: ChatTemplate) -> Iterator[Finding]:
    """Whether a conversation keeps its ids: with tools where the template takes them, and with thinking."""
    try:
        yield _kept(walk(renderer, template), "turns with tools")
    except GatewayError as error:
        yield note(f"conversations with tools cannot be rendered: {error.message}")
        yield _without_tools(renderer, template)
    if renderer.vocabulary.special_id("<think>") is not None:
        yield from _thinking(renderer, template)


def _without_tools(renderer: Renderer, template: ChatTemplate) -> Finding:
    try:
        return _kept(walk(renderer, template, tools=False), "turns")
    except GatewayError as error:
        fix = "mend its chat_template.jinja, or use an instruction-tuned model"
        return problem(f"no conversation can be rendered: {error.message}", fix=fix, like=ConfigError, blocks=True)


def _kept(turns: Sequence[Continuation], what: str) -> Finding:
    forks = [turn.fork for turn in turns if turn.fork is not None]
    figures = {"turns": len(turns), "extended": len(turns) - len(forks), "forks": dict(Counter(forks))}
    for number, turn in enumerate(turns, start=1):
        if turn.rewritten is not None:
            was, became = turn.rewritten
            text = (
                f"the chat template rewrites history: in turn {number} of {len(turns)} {was!r} became {became!r}; the "
                "token tree forks there, and everything after that place is computed again in every turn"
            )
            return warning(text, fix=_APPEND_ONLY, **figures)
    if forks:
        text = (
            f"{len(forks)} of {len(turns)} {what} are rendered in full ({forks[0]}): earlier completions are encoded "
            "again, so the token tree forks wherever the policy split a text into other tokens"
        )
        return warning(text, fix=_APPEND_ONLY, **figures)
    return ok(f"prefixes are kept: {len(turns)} of {len(turns)} {what} extend the ids before them", **figures)


def _thinking(renderer: Renderer, template: ChatTemplate) -> Iterator[Finding]:
    try:
        turns = walk(renderer, template, thinking=True)
    except GatewayError:
        return  # The template takes no tools, which the finding before this one says.
    forks = sum(turn.fork is not None for turn in turns)
    if forks:
        yield note(
            f"{forks} of {len(turns)} turns with thinking are followed by a fork, because the template drops thinking "
            "from history: the thinking is trained, and later turns do not see it",
            thinking_turns=len(turns),
            thinking_forks=forks,
        )


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the agent added after a turn of the assistant, and what became of the ids before it."""

    fork: str | None
    """Why the prompt had to be rendered in full; ``None`` where it extends the recorded ids."""
    rewritten: tuple[str, str] | None
    """The text at the first token that the template changed, before and after; ``None`` where it changed none."""
    tokens: int
    """The length of the prompt."""


def _conversation(thinking: bool, tools: bool) -> list[Message]:
    """Questions and answers, with tool calls and their results between them where ``tools`` is set.

    The assistant thinks in every turn or, without ``thinking``, in none.
    """
    messages: list[Message] = [{"role": "system", "content": "Use the calculator. Be brief."}]
    for number, (left, right) in enumerate([(12, 34), (408, 2)]):
        call = {"name": "calculate", "arguments": json.dumps({"expression": f"{left} * {right}", "exact": True})}
        messages += [
            {"role": "user", "content": f"What is {left} * {right}?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": f"c{number}", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": f"c{number}", "name": "calculate", "content": str(left * right)},
            {"role": "assistant", "content": f"It is {left * right}."},
        ]
    messages.append({"role": "user", "content": "Thanks. And the sum of both?"})
    if not tools:
        messages = [m for m in messages if m["role"] != "tool" and "tool_calls" not in m]
    if not thinking:
        return messages
    return [m | {"reasoning_content": "Let me see."} if m["role"] == "assistant" else m for m in messages]


def walk(
    renderer: Renderer, template: ChatTemplate, *, thinking: bool = False, tools: bool = True
) -> list[Continuation]:
    """The continuations of a conversation of several turns, rendered as an agent would have it grow.

    ``tools`` puts tool calls in it, and ``thinking`` has the assistant think in every turn. Raises ``GatewayError``
    where the template refuses such a conversation.
    """
    return list(_Walk(renderer, template, thinking, TOOLS if tools else None).turns(_conversation(thinking, tools)))


@dataclass(frozen=True, slots=True)
class _Walk:
    renderer: Renderer
    template: ChatTemplate
    thinking: bool
    tools: Tools | None

    def turns(self, messages: Sequence[Message]) -> Iterator[Continuation]:
        spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        prompt = self.renderer.render(messages[: spoken[0]], self.tools)
        for index, following in zip(spoken, [*spoken[1:], len(messages)], strict=True):
            anew = self.renderer.render(messages[:following], self.tools)
            completion = self._completion(messages[: index + 1], prompt, anew)
            new = messages[index + 1 : following]
            extended = self.renderer.extend(
                prompt, completion, new, self.tools, thinking=self.thinking, history=messages[: index + 1]
            )
            fork = extended if isinstance(extended, str) else None
            rewritten = self._rewritten([*prompt, *completion], self.template.render(messages[:following], self.tools))
            prompt = anew if isinstance(extended, str) else extended
            yield Continuation(fork, rewritten, len(prompt))

    def _completion(self, until: Sequence[Message], prompt: Sequence[int], anew: Sequence[int]) -> list[int]:
        """The ids of the last of the messages ``until``, as the policy samples it after ``prompt``, its end included.

        Some templates write the last turn in another way than one that others follow. A turn that thinks is taken as
        it was when it was the last, since templates drop thinking from those before.
        """
        alone = self.template.render(until, self.tools, prompt=False)
        candidates = [alone] if self.thinking else [anew, alone]
        written = next((ids for ids in candidates if list(ids[: len(prompt)]) == list(prompt)), alone)
        ends = (end for end in range(len(prompt), len(written)) if written[end] in self.renderer.stop_ids)
        return list(written[len(prompt) : next(ends, len(written) - 1) + 1])

    def _rewritten(self, recorded: Sequence[int], anew: Sequence[int]) -> tuple[str, str] | None:
        pairs = zip(recorded, anew, strict=False)
        same = next((index for index, (old, new) in enumerate(pairs) if old != new), min(len(recorded), len(anew)))
        if same == len(recorded):
            return None
        shown = slice(same, same + _SHOWN_TOKENS)
        return self.renderer.vocabulary.decode(recorded[shown]), self.renderer.vocabulary.decode(anew[shown])
