"""Episodes out of rows of the store's tables, which ``agentrl.runs.encoding`` has made."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from agentrl.gateway.contract import Call, Replacement
from agentrl.rollout.contract import Episode, EpisodeKey, Failure, Outcome, Phase
from agentrl.runs.contract import EpisodeRow, GroupRow
from agentrl.runs.migrations import FIRST_WITH_TABLES, call_rows, tree_row
from agentrl.runs.schema import CALL_COLUMNS, EPISODE_COLUMNS, TREE_COLUMNS, stored_text
from agentrl.runs.trained import numbers
from agentrl.tokens.contract import TokenTree

__all__ = [
    "OUTLINED_OF_CALLS",
    "OUTLINED_OF_EPISODES",
    "ROWS",
    "outlined",
    "outlined_call",
    "read_episodes",
    "to_group",
    "to_row",
    "to_tree",
]

_ROW_COLUMNS = (
    *("id", "phase", "group_ordinal", "task", "sample", "version", "trained_step", "outcome", "reward", "seconds"),
    *("attempts", "call_count", "sampled_tokens", "failure_side", "failure_reason", "mistake"),
    *("fate", "advantage", "surprise", "started"),
)
ROWS = f"SELECT {', '.join(_ROW_COLUMNS)} FROM episodes"

OUTLINED_OF_EPISODES = (
    *("id", "phase", "group_ordinal", "task", "sample", "outcome", "reward", "failure_side", "failure_reason"),
    *("failure_fingerprint", "mistake", "mistake_fingerprint", "setbacks"),
)
OUTLINED_OF_CALLS = (
    *("id", "finish_reason", "prompt_tokens", "completion_tokens", "delivered", "overridden", "unmet"),
    *("control_tokens", "normalised"),
)


def to_row(values: Sequence[Any]) -> EpisodeRow:
    value = dict(zip(_ROW_COLUMNS, values, strict=True))
    key = EpisodeKey(*(value.pop(name) for name in ("phase", "group_ordinal", "task", "sample")))
    if value["failure_reason"] is not None:
        value["failure_reason"] = stored_text(value["failure_reason"])
    return EpisodeRow(key=key, **value)


def to_group(members: Sequence[EpisodeRow]) -> GroupRow:
    first = members[0].key
    return GroupRow(first.phase, first.group, first.task, tuple(members))


def read_episodes(connection: sqlite3.Connection, version: int, ids: Sequence[int]) -> list[Episode]:
    """The whole episodes of ``ids``, in the same order."""
    among = f"IN ({', '.join(map(str, ids))})"
    columns = ", ".join("tasks.data" if name == "data" else f"e.{name}" for name in EPISODE_COLUMNS)
    found = connection.execute(
        f"SELECT {columns} FROM episodes AS e JOIN tasks ON digest = e.data WHERE e.id {among} ORDER BY e.id"
    ).fetchall()
    calls: dict[int, list[Sequence[Any]]] = {id: [] for id in ids}
    trees: dict[int, Sequence[Any]] = {}
    if version < FIRST_WITH_TABLES:
        for id, old_calls, old_tree in connection.execute(
            f"SELECT id, calls, tree FROM main.episodes WHERE id {among}"
        ):
            calls[id] = list(call_rows(old_calls))
            trees[id] = tree_row(old_tree)
    else:
        names = f"SELECT {', '.join(CALL_COLUMNS)} FROM calls"
        for id, *call in connection.execute(f"{names} WHERE episode {among} ORDER BY episode, ordinal"):
            calls[id].append(call)
        names = f"SELECT {', '.join(TREE_COLUMNS)} FROM trees"
        trees = {id: tree for id, *tree in connection.execute(f"{names} WHERE episode {among}")}
    return [_episode(values, calls[values[0]], trees[values[0]]) for values in found]


def _episode(values: Sequence[Any], calls: Iterable[Sequence[Any]], tree: Sequence[Any]) -> Episode:
    value = dict(zip(EPISODE_COLUMNS, values, strict=True))
    return Episode(
        key=EpisodeKey(cast(Phase, value["phase"]), value["group_ordinal"], value["task"], value["sample"]),
        data=json.loads(value["data"]),
        outcome=cast(Outcome, value["outcome"]),
        reward=value["reward"],
        call_rewards=json.loads(value["call_rewards"]),
        reward_parts=json.loads(value["reward_parts"]),
        calls=tuple(_calls(calls)),
        tree=to_tree(*tree),
        answer=json.loads(value["answer"]),
        failure=_failure(value),
        mistake=value["mistake"],
        mistake_fingerprint=stored_text(value["mistake_fingerprint"]),
        setbacks=tuple(Failure(*each) for each in json.loads(value["setbacks"])),
        seconds=value["seconds"],
        attempts=value["attempts"],
        version=value["version"],
        trained_step=value["trained_step"],
        started=value["started"],
    )


def _failure(value: Mapping[str, Any]) -> Failure | None:
    if value["failure_side"] is None:
        return None
    reason, fingerprint = stored_text(value["failure_reason"]), stored_text(value["failure_fingerprint"])
    return Failure(value["failure_side"], reason, fingerprint)


def outlined(row: Sequence[Any], calls: tuple[Call, ...]) -> Episode:
    value = dict(zip(OUTLINED_OF_EPISODES, row, strict=True))
    return Episode(
        key=EpisodeKey(cast(Phase, value["phase"]), value["group_ordinal"], value["task"], value["sample"]),
        data={},
        outcome=cast(Outcome, value["outcome"]),
        reward=value["reward"],
        calls=calls,
        failure=_failure(value),
        mistake=value["mistake"],
        mistake_fingerprint=stored_text(value["mistake_fingerprint"]),
        setbacks=tuple(Failure(*each) for each in json.loads(value["setbacks"])),
    )


def outlined_call(row: Sequence[Any]) -> Call:
    value = dict(zip(OUTLINED_OF_CALLS, row, strict=True))
    return Call(
        id=stored_text(value["id"]),
        parent=None,
        request={},
        message={},
        finish_reason=stored_text(value["finish_reason"]),
        prompt_tokens=value["prompt_tokens"],
        completion_tokens=value["completion_tokens"],
        **_told(value),
    )


def _told(value: Mapping[str, Any]) -> dict[str, Any]:
    """What a call's columns tell of what was changed in it or went wrong."""
    return {
        "overridden": tuple(json.loads(value["overridden"])),
        "unmet": tuple(json.loads(value["unmet"])),
        "control_tokens": tuple(json.loads(value["control_tokens"])),
        "normalised": tuple(Replacement(**each) for each in json.loads(value["normalised"])),
        "delivered": bool(value["delivered"]),
    }


def _calls(rows: Iterable[Sequence[Any]]) -> Iterator[Call]:
    requests: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        value = dict(zip(CALL_COLUMNS[1:], row, strict=True))
        parent = None if value["parent"] is None else stored_text(value["parent"])
        request = json.loads(value["request"])
        if value["repeated"] is not None:
            request = _joined(requests.get(parent or "", {}), request, json.loads(value["repeated"]))
        call = Call(
            id=stored_text(value["id"]),
            parent=parent,
            request=request,
            message=json.loads(value["message"]),
            finish_reason=stored_text(value["finish_reason"]),
            prompt_tokens=value["prompt_tokens"],
            completion_tokens=value["completion_tokens"],
            fork_reason=None if value["fork_reason"] is None else stored_text(value["fork_reason"]),
            seconds=value["seconds"],
            started=value["started"],
            waited=value["waited"],
            **_told(value),
        )
        requests[call.id] = request
        yield call


def _joined(parent: Mapping[str, Any], added: Mapping[str, Any], repeated: Mapping[str, Any]) -> dict[str, Any]:
    request = {name: parent[name] for name in repeated["fields"]} | dict(added)
    for name, equal in repeated["items"].items():
        rows = [(0, equal)] if isinstance(equal, int) else equal
        items, own = list[Any](), iter(added[name])
        for start, length in rows:
            items += islice(own, start - len(items))
            items += parent[name][start : start + length]
        request[name] = [*items, *own]
    return request


def to_tree(spans: str, ids: bytes, logprobs: bytes, versions: bytes, alternatives: str | None = None) -> TokenTree:
    tokens, sampled_versions = numbers("i", ids), numbers("i", versions)
    # As many log-probabilities as versions: their size says which floats they are.
    drawn = numbers("f" if len(logprobs) == len(versions) else "d", logprobs)
    reported = {} if alternatives is None else json.loads(alternatives)
    rows, token, draw = list[dict[str, Any]](), 0, 0
    shape = json.loads(spans)
    for parent, fork, count, *sample in shape:
        row: dict[str, Any] = {"parent": parent, "fork": fork, "ids": tokens[token : token + count]}
        token += count
        if sample:
            call, temperature, constrained, *grammar = sample
            row["sampled"] = {"call": call, "temperature": temperature, "constrained": constrained} | {
                "logprobs": drawn[draw : draw + count],
                "versions": sampled_versions[draw : draw + count],
            }
            if grammar:  # It is spelled out where it comes first; after that stands the index of that span.
                kind, text, stop_ids = shape[grammar[0]][6] if isinstance(grammar[0], int) else grammar[0]
                row["sampled"] |= {"grammar": {"kind": kind, "text": text}, "stop_ids": stop_ids}
            if str(len(rows)) in reported:
                row["sampled"] |= {"alternatives": reported[str(len(rows))]}
            draw += count
        rows.append(row)
    return TokenTree.from_json(rows)
