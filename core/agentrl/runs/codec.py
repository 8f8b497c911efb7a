"""An episode as a row of the store, and back.

What people and viewers look at is JSON text, which SQLite's own functions read; the token tree is bytes:
a JSON head with the shape of the spans, then all ids, logprobs and versions as flat little-endian arrays.
A call keeps of its request what its parent's request does not hold already: an agent sends its whole
history with every call, and a long conversation would otherwise grow with the square of its length.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from agentrl.errors import encodable
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure, Outcome, Phase
from agentrl.tokens.contract import TokenTree

__all__ = ["COLUMNS", "Row", "from_row", "pack_tree", "plain", "to_row", "unpack_tree"]

Row = tuple[Any, ...]

COLUMNS = (
    "phase",
    "group_ordinal",
    "task",
    "sample",
    "version",
    "trained_step",
    "outcome",
    "reward",
    "seconds",
    "attempts",
    "sampled_tokens",
    "failure",
    "mistake",
    "data",
    "answer",
    "call_rewards",
    "reward_parts",
    "calls",
    "tree",
)

_HEAD = struct.Struct("<cI")


def to_row(episode: Episode) -> Row:
    """The values of ``COLUMNS``. Raises ``TypeError`` or ``ValueError`` for data that JSON cannot carry."""
    key = episode.key
    return (
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
        sum(len(span.ids) for span in episode.tree.spans if span.sampled is not None),
        None if episode.failure is None else json.dumps(_failure_to_json(episode.failure)),
        None if episode.mistake is None else encodable(episode.mistake),  # A text column takes UTF-8 only.
        json.dumps(episode.data),
        json.dumps(plain(episode.answer)),
        json.dumps(episode.call_rewards),
        json.dumps(dict(episode.reward_parts)),
        json.dumps(_calls_to_json(episode.calls)),
        pack_tree(episode.tree),
    )


def from_row(row: Row) -> Episode:
    """The episode that ``to_row`` took apart."""
    value = dict(zip(COLUMNS, row, strict=True))
    return Episode(
        key=EpisodeKey(cast(Phase, value["phase"]), value["group_ordinal"], value["task"], value["sample"]),
        data=json.loads(value["data"]),
        outcome=cast(Outcome, value["outcome"]),
        reward=value["reward"],
        call_rewards=json.loads(value["call_rewards"]),
        reward_parts=json.loads(value["reward_parts"]),
        calls=_calls_from_json(json.loads(value["calls"])),
        tree=unpack_tree(value["tree"]),
        answer=json.loads(value["answer"]),
        failure=None if value["failure"] is None else Failure(**json.loads(value["failure"])),
        mistake=value["mistake"],
        seconds=value["seconds"],
        attempts=value["attempts"],
        version=value["version"],
        trained_step=value["trained_step"],
    )


def plain(value: Any) -> Any:
    """``value`` as JSON can carry it: whatever it cannot, in an agent's answer, becomes its ``repr``.

    An answer may be any Python object, and by the time it is stored a reward function has scored it:
    keeping a picture of it loses nothing that trains.
    """
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return _picture(value)
    return value


def _picture(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=repr))
    except (TypeError, ValueError, RecursionError):
        # A key that is no string, a cycle, or nesting without end.
        return repr(value)


def _failure_to_json(failure: Failure) -> dict[str, str]:
    return {"side": failure.side, "reason": failure.reason, "fingerprint": failure.fingerprint}


def _calls_to_json(calls: Sequence[Call]) -> list[dict[str, Any]]:
    requests: dict[str, Mapping[str, Any]] = {}
    rows = []
    for call in calls:
        row = {field.name: getattr(call, field.name) for field in fields(call)}
        row["request"] = _beyond(requests.get(call.parent or "", {}), call.request)
        rows.append(row)
        requests[call.id] = call.request
    return rows


def _calls_from_json(rows: Iterable[dict[str, Any]]) -> tuple[Call, ...]:
    requests: dict[str, Mapping[str, Any]] = {}
    calls = []
    for row in rows:
        request = _joined(requests.get(row["parent"] or "", {}), row["request"])
        lists = {name: tuple(row.get(name, ())) for name in ("overridden", "unmet", "control_tokens")}
        call = Call(**row | {"request": request, **lists})
        requests[call.id] = request
        calls.append(call)
    return tuple(calls)


def _beyond(parent: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """``request`` as ``{"same": fields equal to the parent's, "shared": {field: leading items}, "new": the rest}``."""
    same = [name for name in request if name in parent and parent[name] == request[name]]
    shared = {
        name: count for name in request if name not in same and (count := _common(parent.get(name), request[name]))
    }
    new = {
        name: value[shared[name] :] if name in shared else value for name, value in request.items() if name not in same
    }
    return {"same": same, "shared": shared, "new": new}


def _joined(parent: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {name: parent[name] for name in row["same"]} | row["new"]
    for name, count in row["shared"].items():
        request[name] = [*parent[name][:count], *row["new"][name]]
    return request


def _common(one: object, other: object) -> int:
    if not isinstance(one, list) or not isinstance(other, list):
        return 0
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def pack_tree(tree: TokenTree) -> bytes:
    """``tree`` as bytes: logprobs take four bytes where single precision holds them exactly, else eight."""
    shape: list[list[Any]] = []
    ids, versions, logprobs = array("i"), array("i"), array("d")
    for span in tree.spans:
        ids.extend(span.ids)
        sampled = span.sampled
        if sampled is None:
            shape.append([span.parent, span.fork, len(span.ids)])
            continue
        shape.append([span.parent, span.fork, len(span.ids), sampled.call, sampled.temperature, sampled.constrained])
        logprobs.extend(sampled.logprobs)
        versions.extend(sampled.versions)
    single = _single(logprobs)
    packed = logprobs if single is None else single
    head = json.dumps(shape).encode()
    return b"".join(
        (_HEAD.pack(packed.typecode.encode(), len(head)), head, _bytes(ids), _bytes(versions), _bytes(packed))
    )


def unpack_tree(data: bytes) -> TokenTree:
    """The tree that ``pack_tree`` wrote."""
    typecode, length = _HEAD.unpack_from(data)
    start = _HEAD.size + length
    shape = json.loads(data[_HEAD.size : start])
    sampled = sum(row[2] for row in shape if len(row) > 3)
    ids, start = _array("i", data, start, sum(row[2] for row in shape))
    versions, start = _array("i", data, start, sampled)
    logprobs, _ = _array(typecode.decode(), data, start, sampled)
    rows, token, draw = [], 0, 0
    for parent, fork, count, *sample in shape:
        row: dict[str, Any] = {"parent": parent, "fork": fork, "ids": ids[token : token + count]}
        token += count
        if sample:
            row["sampled"] = dict(zip(("call", "temperature", "constrained"), sample, strict=True)) | {
                "logprobs": logprobs[draw : draw + count],
                "versions": versions[draw : draw + count],
            }
            draw += count
        rows.append(row)
    return TokenTree.from_json(rows)


def _single(values: array[float]) -> array[float] | None:
    try:
        single = array("f", values)
    except OverflowError:
        return None
    return single if array("d", single) == values else None


def _bytes(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return values.tobytes()


def _array(typecode: str, data: bytes, start: int, count: int) -> tuple[list[Any], int]:
    values: array[Any] = array(typecode)
    end = start + count * values.itemsize
    values.frombytes(data[start:end])
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist(), end
