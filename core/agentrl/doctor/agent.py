"""The agent: one episode, run as training would run it, with its conversation and everything that it came to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentrl.doctor.report import Finding, note, ok, problem, warning
from agentrl.errors import (
    AgentError,
    AgentRLError,
    BackendError,
    ConfigError,
    GatewayError,
    PluginError,
    RunError,
    Side,
)
from agentrl.gateway.contract import SessionSettings
from agentrl.gateway.dialects.sent import sent_messages
from agentrl.gateway.session import Session
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.runs.tally import normalised_by
from agentrl.tokens.probes import LOST
from agentrl.training.requests import training_session
from agentrl.training.task_order import TaskOrder

if TYPE_CHECKING:
    from agentrl.doctor.examination import Case

__all__ = ["FIXES", "agent", "parted"]

Message = Mapping[str, Any]

FIXES: dict[Side, str] = {
    "agent": "mend the agent; for what the policy does wrong it raises agentrl.PolicyError, which is an outcome",
    "policy": "nothing is to be done: the policy learns to avoid it",
    "reward": "mend the reward: it is given every answer that the agent may return",
    "backend": "mend the engine, or use another inference.backend",
    "gateway": "change the request that the agent makes, or replace its fields with rollout.override",
    "config": "change the setting",
    "plugin": "mend or update the plugin",
    "worker": "see what ends the agent's process, or run fewer at once: rollout.max_workers",
    "run": "change the setting",
}
"""What to do about a failure, by its side, where the failure itself names no fix."""
_ERRORS: dict[Side, type[AgentRLError]] = {
    "agent": AgentError,
    "backend": BackendError,
    "config": ConfigError,
    "plugin": PluginError,
}
"""The error that a run would end with, by the side of a failure; ``RunError`` for the others."""
_GIVEN = "have the agent's client use the base_url and api_key, or the http_client, that run() is given"
_UNUSED = {
    "inline": f"{_GIVEN}; for one that reads OPENAI_BASE_URL and takes no arguments, set rollout.mode=subproc",
    "workers": f"{_GIVEN}, or OPENAI_BASE_URL and OPENAI_API_KEY of its process's environment",
}
"""What to do about an agent that never used its endpoint, by where it runs."""
_LONGEST = 1200
"""The characters of a message that are shown, from its beginning and its end."""


async def agent(case: Case) -> AsyncIterator[Finding]:
    """Run the first episode that training would run, and show what the model was given and what it wrote."""
    (task,) = TaskOrder(case.parts.train_tasks, case.config.seed).take(1)
    key = EpisodeKey("train", task.position, task.index, 0)
    settings = training_session(case.config, key, case.learner.version)
    runner, refusals = _watched(case.serving.dispatcher.runner)
    episode = await runner.run_episode(key, task.data, settings)
    if lost := next((error for error in refusals() if error.code == LOST), None):
        # A problem even where the agent goes on without its tools: it was not written to be trained without them.
        yield problem(lost.message, fix=lost.fix or FIXES["gateway"], like=GatewayError, blocks=True, code=LOST)
        return
    outcome = _outcome(episode, "workers" if case.config.runs_in_workers else "inline")
    shown = _conversation(episode)
    yield replace(outcome, details=_written(episode), figures={**outcome.figures, "conversation": shown})
    for finding in _calls(episode):
        yield finding


def _watched(runner: EpisodeRunner) -> tuple[EpisodeRunner, Callable[[], list[GatewayError]]]:
    """A copy of ``runner``, and a function that returns what the gateway has refused its episodes so far."""
    sessions: list[Session] = []

    def open_session(settings: SessionSettings) -> Session:
        sessions.append(runner.open_session(settings))
        return sessions[-1]

    def refusals() -> list[GatewayError]:
        return [error for session in sessions for error in session.refusals if isinstance(error, GatewayError)]

    return replace(runner, open_session=open_session), refusals


def _outcome(episode: Episode, mode: str) -> Finding:
    calls = episode.calls
    prompt, completion = (sum(getattr(call, f"{kind}_tokens") for call in calls) for kind in ("prompt", "completion"))
    figures = {
        "task": episode.key.task,
        "outcome": episode.outcome,
        "reward": episode.reward,
        "calls": len(calls),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "seconds": round(episode.seconds, 3),
    }
    counted = f"{len(calls)} call{'s' * (len(calls) != 1)}"
    if (failure := episode.failure) is not None:
        reason, fix = parted(failure.reason)
        text = f"task {episode.key.task} failed after {episode.seconds:.2f} s and {counted}; {failure.side}: {reason}"
        figures["side"] = failure.side
        return problem(
            text, fix=fix or FIXES[failure.side], like=_ERRORS.get(failure.side, RunError), blocks=True, **figures
        )
    text = f"task {episode.key.task}: {counted}"
    if not calls and episode.limit == "context":
        text = f"{text}: the first prompt already leaves no room in the context, so there is nothing to train"
        fix = parted(str(episode.mistake))[1] or FIXES["gateway"]
        return problem(text, fix=fix, like=GatewayError, blocks=True, **figures)
    if not calls:
        text = f"{text}: the agent never used the endpoint of its session, so there is nothing to train"
        return problem(text, fix=_UNUSED[mode], like=AgentError, blocks=True, **figures)
    text = f"{text}, {prompt:,} prompt and {completion:,} completion tokens, {episode.seconds:.2f} s"
    if episode.reward is None:
        return warning(f"{text}; rejected, so not trained", fix="return a reward instead of None", **figures)
    return ok(f"{text}; reward {episode.reward:g}", **figures)


def parted(reason: str) -> tuple[str, str | None]:
    """A failure's reason without its fix, and the fix, which agentrl's own errors end with in parentheses.

    The fix is ``None`` where the reason does not end so.
    """
    opening, depth = len(reason), 0
    while reason.endswith(")") and opening and (depth or opening == len(reason)):
        opening -= 1
        depth += {")": 1, "(": -1}.get(reason[opening], 0)
    if opening == len(reason) or depth or reason[:opening][-1:] != " ":
        return reason, None
    return reason[: opening - 1], reason[opening + 1 : -1]


def _calls(episode: Episode) -> Iterator[Finding]:
    """What is worth knowing about the calls of an episode."""
    if episode.mistake is not None:
        yield note(f"an error of the policy ended the episode, which is an outcome: {episode.mistake}")
    cut = sum(call.finish_reason == "length" for call in episode.calls)
    if cut:
        yield note(f"{cut} of {len(episode.calls)} completions were cut by max_tokens or the context", truncated=cut)
    forks = Counter(call.fork_reason for call in episode.calls if call.fork_reason is not None)
    if forks:
        reasons = ", ".join(f"{count} for {reason!r}" for reason, count in forks.most_common())
        yield note(f"{forks.total()} prompts were rendered in full instead of extended: {reasons}", forks=dict(forks))
    overridden = Counter(field for call in episode.calls for field in call.overridden)
    if overridden:
        yield note(f"rollout.override changed {', '.join(overridden)}", overridden=dict(overridden))
    rules = Counter(rule for call in episode.calls for rule in normalised_by(call))
    if rules:
        yield note(f"gateway.normalise changed texts of the system: {', '.join(rules)}", normalised=dict(rules))
    lost = sum(not call.delivered for call in episode.calls)
    if lost:
        yield note(
            f"{lost} completions could not be delivered, because the agent's client had closed the connection",
            undelivered=lost,
        )
    unmet = Counter(field for call in episode.calls for field in call.unmet)
    if unmet:
        lacking = f"{sum(map(bool, (call.unmet for call in episode.calls)))} of {len(episode.calls)} calls"
        fix = "docs/gateway.md says what can be granted"
        if "strict" in unmet:
            fix = "to accept arguments that may break their tool's schema, set rollout.override: {strict: false}"
        yield note(f"{lacking} did without {', '.join(unmet)}, which cannot be granted here ({fix})", unmet=dict(unmet))
    tokens = Counter(token for call in episode.calls for token in call.control_tokens)
    if tokens:
        said = f"the agent's texts hold {', '.join(tokens)}, which the model reads as control tokens"
        yield note(f"{said} (for plain text set model.control_tokens=plain)", control_tokens=dict(tokens))


def _conversation(episode: Episode) -> list[Message]:
    """The messages of an episode's calls in their order, each once; those that the model wrote have a key ``sampled``.

    A call that starts another conversation, as a second agent's does, brings its messages with it.
    """
    requests: dict[str, Sequence[Message]] = {}
    messages: list[Message] = []
    for call in episode.calls:
        sent = sent_messages(call.request)
        known = requests.get(call.parent or "", ())
        given = sent[_common(known, sent) :]
        messages += [message for message in given if call.parent is None or message.get("role") != "assistant"]
        messages.append({**call.message, "sampled": True})
        requests[call.id] = sent
    return messages


def _written(episode: Episode) -> list[str]:
    """Lines for people to read: the task, the conversation and the agent's answer; long texts are cut."""
    said = [(_speaker(message), text) for message in _conversation(episode) for text in _texts(message)]
    told = [("task", json.dumps(episode.data, ensure_ascii=False)), *said]
    if episode.answer is not None:
        told.append(("answer", episode.answer if isinstance(episode.answer, str) else repr(episode.answer)))
    width = max(len(speaker) for speaker, _ in told)
    return [line for speaker, text in told for line in _lines(speaker.ljust(width), text)]


def _lines(margin: str, text: str) -> Iterator[str]:
    for line in _cut(text).splitlines() or [""]:
        yield f"{margin}  {line}".rstrip()
        margin = " " * len(margin)


def _speaker(message: Message) -> str:
    return "model" if message.get("sampled") else str(message.get("role", ""))


def _texts(message: Message) -> Iterator[str]:
    """The texts of a message: its thinking, its content, and its tool calls."""
    if thought := message.get("reasoning_content"):
        yield f"(thinks) {thought}"
    content = message.get("content")
    calls = message.get("tool_calls") or ()
    if content or not calls:
        yield content if isinstance(content, str) else "" if content is None else json.dumps(content)
    for call in calls:
        function = call.get("function", {})
        yield f"calls {function.get('name')}({function.get('arguments')})"


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} more characters …\n{text[-half:]}"


def _common(one: Sequence[Message], other: Sequence[Message]) -> int:
    """The number of messages that both begin with."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (mine, its) in enumerate(pairs) if mine != its), min(len(one), len(other)))
