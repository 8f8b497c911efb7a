"""A run's metrics and episodes for pandas and the ``datasets`` library, which are imported when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from agentrl.extras import require
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import EpisodeRow, MetricsLine, TrainedTokens

if TYPE_CHECKING:
    import datasets
    import pandas

__all__ = ["episodes_dataset", "episodes_frame", "metrics_frame"]

_TYPES: Final = {
    "id": "Int64",
    "key": "string",
    "phase": "string",
    "group": "Int64",
    "task": "Int64",
    "sample": "Int64",
    "version": "Int64",
    "trained_step": "Int64",
    "outcome": "string",
    "reward": "Float64",
    "seconds": "Float64",
    "attempts": "Int64",
    "call_count": "Int64",
    "sampled_tokens": "Int64",
    "failure_side": "string",
    "failure_reason": "string",
    "mistake": "string",
    "fate": "string",
    "advantage": "Float64",
    "surprise": "Float64",
    "started": "Float64",
}
"""The columns of an episode and their types in pandas, which have a missing value of their own."""
_ARROW: Final = {"Int64": "int64", "Float64": "float64", "string": "string"}
_MESSAGE: Final = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
_OF_TOKENS: Final = ("advantages", "weights", "logprobs", "entropies", "importances")
_AT_ONCE = 512
"""Episodes that are packed at once: as Python values they take ten times the room."""


def metrics_frame(lines: Sequence[MetricsLine]) -> pandas.DataFrame:
    """One row a line, with ``step``, ``time`` and a column for each metric, NaN where a line has none.

    Raises ``MissingExtra`` where pandas is not installed.
    """
    require("pandas")
    import pandas

    names = dict.fromkeys(name for line in lines for name in line.metrics)
    columns: dict[str, Any] = {"step": [line.step for line in lines], "time": [line.time for line in lines]}
    columns |= {name: pandas.array([line.metrics.get(name) for line in lines], dtype="float64") for name in names}
    return pandas.DataFrame(columns)


def episodes_frame(rows: Iterable[EpisodeRow]) -> pandas.DataFrame:
    """One row an episode, with the columns of ``EpisodeRow``; its key is ``key`` as a text, and its parts beside it.

    Raises ``MissingExtra`` where pandas is not installed.
    """
    require("pandas")
    import pandas

    values = [_values(row) for row in rows]
    return pandas.DataFrame(
        {name: pandas.array([each[name] for each in values], dtype=dtype) for name, dtype in _TYPES.items()}
    )


def episodes_dataset(
    episodes: Iterable[tuple[EpisodeRow, Episode, TrainedTokens | None]], tokens: bool = True
) -> datasets.Dataset:
    """One row an episode, in memory, with the columns of ``episodes_frame`` and what the episode held.

    ``data`` is the task and ``answer`` the answer, as JSON. ``messages`` is the conversation of the last call with its
    answer, as texts; a content that is no text, and ``tool_calls``, are JSON. With ``tokens`` there is a list each with
    a value for each sampled token, in the order of the tree's spans: ``token_ids``, ``token_logprobs`` (of the policy
    that sampled it) and ``token_versions``; and what the step made of it, ``token_fates`` and ``trained_advantages``,
    ``trained_weights``, ``trained_logprobs``, ``trained_entropies`` and ``trained_importances``, empty where there was
    no step.

    Raises ``MissingExtra`` where datasets is not installed.
    """
    require("datasets")
    import datasets

    features = datasets.Features(
        {name: datasets.Value(_ARROW[dtype]) for name, dtype in _TYPES.items()}
        | {"data": datasets.Value("string"), "answer": datasets.Value("string")}
        | {"messages": [{name: datasets.Value("string") for name in _MESSAGE}]}
        | ({name: [datasets.Value(dtype)] for name, dtype in _token_columns().items()} if tokens else {})
    )
    remaining = iter(episodes)
    tables = list[datasets.Dataset]()
    while True:
        page = [_whole(row, episode, made, tokens) for row, episode, made in islice(remaining, _AT_ONCE)]
        if page or not tables:
            columns = {name: [each[name] for each in page] for name in features}
            tables.append(datasets.Dataset.from_dict(columns, features=features))
        if len(page) < _AT_ONCE:
            return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)


def _values(row: EpisodeRow) -> dict[str, Any]:
    values = {each.name: getattr(row, each.name) for each in fields(row)}
    key = row.key
    values |= {"key": str(key), "phase": key.phase, "group": key.group, "task": key.task, "sample": key.sample}
    return {name: _utf8(values[name]) for name in _TYPES}


def _whole(row: EpisodeRow, episode: Episode, made: TrainedTokens | None, tokens: bool) -> dict[str, Any]:
    values = _values(row) | {"data": json.dumps(episode.data), "answer": json.dumps(episode.answer)}
    values["messages"] = list(_messages(episode))
    if tokens:
        spans = [(span.ids, span.sampled) for span in episode.tree.spans if span.sampled is not None]
        values["token_ids"] = [id for ids, _ in spans for id in ids]
        values["token_logprobs"] = [logprob for _, sampled in spans for logprob in sampled.logprobs]
        values["token_versions"] = [version for _, sampled in spans for version in sampled.versions]
        values["token_fates"] = [] if made is None else list(made.fates)
        values |= {f"trained_{name}": [] if made is None else list(getattr(made, name)) for name in _OF_TOKENS}
    return values


def _token_columns() -> dict[str, str]:
    sampled = {"token_ids": "int32", "token_logprobs": "float64", "token_versions": "int32", "token_fates": "string"}
    return sampled | {f"trained_{name}": "float64" for name in _OF_TOKENS}


def _messages(episode: Episode) -> Iterator[dict[str, str | None]]:
    from agentrl.gateway.dialects.sent import sent_messages

    if episode.calls:
        last = episode.calls[-1]
        for message in (*sent_messages(last.request), last.message):
            yield {name: _text(message.get(name)) for name in _MESSAGE}


def _text(value: object) -> str | None:
    return None if value is None else str(_utf8(value if isinstance(value, str) else json.dumps(value)))


def _utf8(value: Any) -> Any:
    """A text without halves of surrogate pairs, which neither library can hold."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
