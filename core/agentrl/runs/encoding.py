"""An episode as rows of the store's tables; ``agentrl.runs.decoding`` reads them back."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import eq
from typing import Any

from agentrl.errors import encodable
from agentrl.gateway.contract import Call
from agentrl.inference.contract import Grammar
from agentrl.rollout.contract import Episode
from agentrl.runs.schema import EPISODE_COLUMNS, called_tools, storable
from agentrl.runs.trained import packed, single
from agentrl.tokens.contract import TokenTree

__all__ = ["DATA", "EpisodeRows", "json_text", "plain", "surprise", "to_rows"]

_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class EpisodeRows:
    """An episode as rows of the store's tables, without the id that it gets when it is written."""

    data: str
    """The task as JSON, for ``tasks``."""
    episode: tuple[Any, ...]
    """The columns of ``episodes`` after ``id``; ``data`` is left out of it, see ``DATA``."""
    calls: tuple[tuple[Any, ...], ...]
    """The columns of ``calls`` after ``episode``."""
    tree: tuple[Any, ...]
    """The columns of ``trees`` after ``episode``."""
    tools: tuple[str | bytes, ...]
    """The names of the tools that the policy called, each once, for ``tools``."""


DATA = EPISODE_COLUMNS.index("data") - 1
"""Where the digest of the task stands among the columns of ``episodes`` after ``id``."""


def to_rows(episode: Episode) -> EpisodeRows:
    """``episode`` as rows. Raises ``TypeError`` or ``ValueError`` for data that JSON cannot hold."""
    key, failure = episode.key, episode.failure
    return EpisodeRows(
        data=json_text(episode.data),
        episode=(
            key.phase,
            key.group,
            key.task,
            key.sample,
            episode.version,
            episode.trained_step,
            episode.outcome,
            None if episode.reward is None else float(episode.reward),
            episode.seconds,
            episode.attempts,
            len(episode.calls),
            sum(len(span.ids) for span in episode.tree.spans if span.sampled is not None),
            None,
            None,
            surprise(episode.tree),
            episode.started,
            None if failure is None else failure.side,
            None if failure is None else storable(failure.reason),
            None if failure is None else storable(failure.fingerprint),
            None if episode.mistake is None else encodable(episode.mistake),
            storable(episode.mistake_fingerprint),
            json_text([[each.side, each.reason, each.fingerprint] for each in episode.setbacks]),
            json_text(plain(episode.answer)),
            json_text(dict(episode.call_rewards)),
            json_text(dict(episode.reward_parts)),
        ),
        calls=tuple(_call_rows(episode.calls)),
        tree=_tree_row(episode.tree),
        tools=tuple(dict.fromkeys(storable(name) for call in episode.calls for name in called_tools(call.message))),
    )


def surprise(tree: TokenTree) -> float | None:
    """The mean over the sampled tokens of the log-probability below zero; ``None`` where none was sampled."""
    logprobs = [logprob for span in tree.spans if span.sampled for logprob in span.sampled.logprobs]
    return -sum(logprobs) / len(logprobs) if logprobs else None


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: whatever it cannot becomes its ``repr``.

    An agent's answer may be any Python object. A reward function has scored it by the time it is stored, so that its
    ``repr`` loses nothing that is trained on.
    """
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return _represented(value)
    return value


def _represented(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=repr))
    except (TypeError, ValueError, RecursionError):
        # A key that is no string, a cycle, or nesting without end.
        return repr(value)


def json_text(value: Any) -> str:
    """``value`` as JSON text that UTF-8 can encode; half a surrogate pair is written as its escape."""
    text = _ENCODE(value)
    if text.isascii():
        return text
    return text if isinstance(storable(text), str) else json.dumps(value)


def _call_rows(calls: Sequence[Call]) -> Iterable[tuple[Any, ...]]:
    """An agent sends its whole history with every call: only what the parent's request does not hold is stored."""
    requests: dict[str, Mapping[str, Any]] = {}
    for ordinal, call in enumerate(calls):
        request, repeated = _beyond(requests.get(call.parent or "", {}), call.request)
        requests[call.id] = call.request
        yield (
            ordinal,
            storable(call.id),
            None if call.parent is None else storable(call.parent),
            json_text(request),
            None if repeated is None else json_text(repeated),
            json_text(dict(call.message)),
            storable(call.finish_reason),
            call.prompt_tokens,
            call.completion_tokens,
            call.seconds,
            call.delivered,
            None if call.fork_reason is None else storable(call.fork_reason),
            json_text(call.overridden),
            json_text(call.unmet),
            json_text(call.control_tokens),
            json_text([asdict(each) for each in call.normalised]),
            call.started,
            call.waited,
        )


def _beyond(parent: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What ``request`` adds to ``parent``, and what it repeats of it.

    The latter is ``{"fields": names of equal fields, "items": {field: equal items}}``: of a list how many leading items
    are equal, or, where the equal ones lie elsewhere too, the first index and the length of each row of them.
    """
    fields = [name for name in request if name in parent and parent[name] == request[name]]
    rows = {name: rows for name in request if name not in fields and (rows := _equal(parent.get(name), request[name]))}
    items = {name: each[0][1] if len(each) == 1 and each[0][0] == 0 else each for name, each in rows.items()}
    added = {name: _without(value, rows.get(name, ())) for name, value in request.items() if name not in fields}
    return added, {"fields": fields, "items": items} if fields or items else None


def _equal(left: object, right: object) -> list[tuple[int, int]]:
    """The rows of items that two lists have in the same places: the first index and the length of each."""
    if not isinstance(left, list) or not isinstance(right, list):
        return []
    rows, start = [], 0
    for equal, row in groupby(map(eq, left, right)):
        length = sum(1 for _ in row)
        rows += [(start, length)] if equal else []
        start += length
    return rows


def _without(value: Any, rows: Sequence[tuple[int, int]]) -> Any:
    """A list without ``rows`` of its items."""
    left, end = [], 0
    for start, length in rows:
        left += value[end:start]
        end = start + length
    return [*left, *value[end:]] if rows else value


def _tree_row(tree: TokenTree) -> tuple[str, bytes, bytes, bytes, str | None]:
    """Log-probabilities take four bytes where single precision holds all of them exactly, else eight."""
    spans: list[list[Any]] = []
    ids, versions, logprobs = array("i"), array("i"), array("d")
    grammars: dict[tuple[Grammar, tuple[int, ...]], int] = {}
    alternatives: dict[int, Any] = {}
    for index, span in enumerate(tree.spans):
        ids.extend(span.ids)
        sampled = span.sampled
        if sampled is None:
            spans.append([span.parent, span.fork, len(span.ids)])
            continue
        spans.append([span.parent, span.fork, len(span.ids), sampled.call, sampled.temperature, sampled.constrained])
        if sampled.grammar is not None:
            first = grammars.setdefault((sampled.grammar, sampled.stop_ids), index)
            spelled = [sampled.grammar.kind, sampled.grammar.text, sampled.stop_ids]
            spans[-1].append(spelled if first == index else first)
        logprobs.extend(sampled.logprobs)
        versions.extend(sampled.versions)
        if sampled.alternatives:
            alternatives[index] = sampled.alternatives
    drawn = single(logprobs)
    return (
        json_text(spans),
        packed(ids),
        packed(logprobs if drawn is None else drawn),
        packed(versions),
        json_text(alternatives) if alternatives else None,
    )
