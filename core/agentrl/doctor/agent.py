"""The agent: one dry episode, with everything that it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from agentrl.doctor.case import Case
from agentrl.doctor.conversation import conversation, written
from agentrl.doctor.findings import Finding, note, ok, problem, warning
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
from agentrl.gateway.session import Session
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.tokens.probes import LOST
from agentrl.training.task_order import TaskOrder, training_session

__all__ = ["FIXES", "agent", "parted"]

FIXES: dict[Side, str] = {
    "agent": "mend the agent; for what the policy does wrong it raises agentrl.PolicyError, which is an outcome",
    "policy": "nothing is to be done: the policy learns it",
    "reward": "mend the reward: it is given every answer that the agent may return",
    "backend": "mend the engine, or use another inference.backend",
    "gateway": "change the request that the agent makes, or replace its fields with rollout.override",
    "config": "change the setting",
    "plugin": "mend or update the plugin",
    "worker": "see what ends the agent's process, or run fewer at once: rollout.max_workers",
    "run": "change the setting",
}
_ERRORS: dict[Side, type[AgentRLError]] = {
    "agent": AgentError,
    "backend": BackendError,
    "config": ConfigError,
    "plugin": PluginError,
}
_GIVEN = "have the agent's client use the base_url and api_key, or the http_client, that run() is given"
_UNUSED = {
    "inline": f"{_GIVEN}; for one that reads OPENAI_BASE_URL and takes no arguments, set rollout.mode=subproc",
    "workers": f"{_GIVEN}, or OPENAI_BASE_URL and OPENAI_API_KEY of its process's environment",
}


async def agent(case: Case) -> AsyncIterator[Finding]:
    """Run the first episode that training would run, and show what the model was given and wrote."""
    (task,) = TaskOrder(case.parts.train_tasks, case.config.seed).take(1)
    key = EpisodeKey("train", task.position, task.index, 0)
    settings = training_session(case.config, key, case.learner.version)
    runner, refusals = _watched(case.serving.dispatcher.runner)
    episode = await runner.run_episode(key, task.data, settings)
    if lost := next((error for error in refusals() if error.code == LOST), None):
        # Said even where the agent goes on without its tools: what is trained then is not what it was written for.
        yield problem(lost.message, fix=lost.fix or FIXES["gateway"], like=GatewayError, blocks=True, code=LOST)
        return
    outcome = _outcome(episode, "workers" if case.config.runs_in_workers else "inline")
    shown = conversation(episode)
    yield replace(outcome, details=written(episode), figures={**outcome.figures, "conversation": shown})
    for finding in _calls(episode):
        yield finding


def _watched(runner: EpisodeRunner) -> tuple[EpisodeRunner, Callable[[], list[GatewayError]]]:
    """The runner, and what the gateway has refused its episodes so far."""
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
    if not calls:
        text = f"{text}: the agent never used the endpoint of its session, so that nothing of it can be trained"
        return problem(text, fix=_UNUSED[mode], like=AgentError, blocks=True, **figures)
    text = f"{text}, {prompt:,} prompt and {completion:,} completion tokens, {episode.seconds:.2f} s"
    if episode.reward is None:
        return warning(f"{text}; rejected, so not trained", fix="return a reward instead of None", **figures)
    return ok(f"{text}; reward {episode.reward:g}", **figures)


def parted(reason: str) -> tuple[str, str | None]:
    """The reason of a failure, and the fix that our own errors end with in parentheses."""
    opening, depth = len(reason), 0
    while reason.endswith(")") and opening and (depth or opening == len(reason)):
        opening -= 1
        depth += {")": 1, "(": -1}.get(reason[opening], 0)
    if opening == len(reason) or depth or reason[:opening][-1:] != " ":
        return reason, None
    return reason[: opening - 1], reason[opening + 1 : -1]


def _calls(episode: Episode) -> Iterator[Finding]:
    """What is remarkable about the calls of an episode."""
    if episode.mistake is not None:
        yield note(f"an error of the policy ended it, which is an outcome: {episode.mistake}")
    cut = sum(call.finish_reason == "length" for call in episode.calls)
    if cut:
        yield note(f"{cut} of {len(episode.calls)} completions were cut by max_tokens or the context", truncated=cut)
    forks = Counter(call.fork_reason for call in episode.calls if call.fork_reason is not None)
    if forks:
        reasons = ", ".join(f"{count} for {reason!r}" for reason, count in forks.most_common())
        yield note(f"{forks.total()} prompts were rendered anew instead of extended: {reasons}", forks=dict(forks))
    overridden = Counter(field for call in episode.calls for field in call.overridden)
    if overridden:
        yield note(f"rollout.override changed {', '.join(overridden)}", overridden=dict(overridden))
    lost = sum(not call.delivered for call in episode.calls)
    if lost:
        yield note(f"{lost} completions could not be delivered: the agent's client had gone", undelivered=lost)
    unmet = Counter(field for call in episode.calls for field in call.unmet)
    if unmet:
        names, calls = ", ".join(unmet), len(episode.calls)
        lacking = f"{unmet.total()} of {calls} calls did without {names}, which nothing here can grant"
        fix = "to take arguments that may break their tool's schema, set rollout.override: {strict: false}"
        yield note(f"{lacking} ({fix})", unmet=dict(unmet))
    tokens = Counter(token for call in episode.calls for token in call.control_tokens)
    if tokens:
        said = f"the agent's texts hold {', '.join(tokens)}, which the model reads as control tokens"
        yield note(f"{said} (for plain text set model.control_tokens=plain)", control_tokens=dict(tokens))
