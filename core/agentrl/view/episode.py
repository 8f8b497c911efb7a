"""The page of one episode: its conversation, tokens, tree and times, and why it was trained or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.errors import ConfigError, near_matches, shown
from agentrl.rollout.contract import Episode, Fate
from agentrl.runs.contract import EpisodeRow
from agentrl.runs.queries import parse_key
from agentrl.runs.reader import Run
from agentrl.view import frame
from agentrl.view.conversation import offered_tools
from agentrl.view.pieces import pieces_of
from agentrl.view.query import EpisodeQuery, WrongQuestion, asked, whole
from agentrl.view.reading import LONGEST_PART, TURNS, Reading, text_of_part
from agentrl.view.stored import StoredEpisodes
from agentrl.view.timeline import timeline
from agentrl.view.tokens import COLOURS, REASONS, TokenView

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["FATES", "ROUTES"]

View = Literal["conversation", "tokens", "tree", "timeline"]
_VIEWS: tuple[View, ...] = get_args(View)
_FIELDS = ("view", "at", "from", "colour", "written", "token")
"""What its address may hold beside the table that led here. A token is there where a server asked for one before."""

FATES: Final[Mapping[Fate, str]] = {
    "trained": "At least one of its tokens is in the loss, with an advantage that is not 0.",
    "without_difference": "Its advantages are 0, or its group was left out: no episode of it was better than another.",
    "filtered": "A filter of the algorithm left it or its group out, though there was something to learn from it.",
    "rejected": "The agent rejected it, or a limit that the policy ran into did, so it has no reward to learn from.",
    "failed": "Something around the policy broke, so it has no part in its group's comparison.",
    "stale": "Its group, or every token that could have been trained, was older than rollout.max_staleness allows.",
    "over_long": "It does not fit a pass of the learner; training.tokens_per_batch is the most that does.",
    "constrained": "Grammars or greedy sampling chose every token of it.",
    "without_tokens": "Its reward reaches no sampled token.",
    "unfinished": "It was in no step when the run ended.",
}
"""What became of an episode, and why, in words."""

TOKENS = 400
"""Tokens that are shown at once."""
_SPANS = 300
_EXCERPT = 24
"""Tokens of a run of them whose text stands beside it."""
_STRETCHES = 600
_CALLS = 300


def _episode(request: Request) -> Response:
    name, key = request.path_params["run"], request.path_params["key"]
    run = frame.library(request).run(name)
    view = _view(request)
    query = EpisodeQuery.read(request.query_params, others=_FIELDS)
    place = _whole(request, "at")
    row = _row(run, name, key)
    previous, following = _neighbours(run, row, query, place)
    etag = frame.tag_of(run.path, str(request.url), row, previous, following)
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    episode = _stored(request).read(run, row)
    chosen = {**query.fields(), **({} if place is None else {"at": str(place)})}
    context: dict[str, Any] = {
        "run": name,
        "row": row,
        "episode": episode,
        "view": view,
        "views": _VIEWS,
        "fate": None if row.fate is None else FATES[row.fate],
        "previous": previous,
        "following": following,
        "chosen": chosen,
        "task": _pretty(episode.data),
        "answer": None if episode.answer is None else _pretty(episode.answer),
        "offered": {name: _pretty(tool) for name, tool in offered_tools(episode.calls).items()},
    }
    context |= _SHOWN[view](request, run, row, episode)
    return frame.page(request, f"episode_{view}.html", etag=etag, **context)


def _view(request: Request) -> View:
    given = request.query_params.get("view", "conversation")
    if given not in _VIEWS:
        raise WrongQuestion(f"view={shown(given, 40)} is unknown", fix=near_matches(given, _VIEWS))
    return given


def _whole(request: Request, name: str) -> int | None:
    """The whole number of a field of the address; ``None`` where it has none."""
    given = request.query_params.get(name, "").strip()
    with asked():
        return whole(name, given) if given else None


def _row(run: Run, name: str, text: str) -> EpisodeRow:
    """The newest episode of the key ``text``. Raises ``ConfigError`` where there is none."""
    key = parse_key(text)
    rows = run.episodes(phase=key.phase, group=key.group, task=key.task)
    row = next((row for row in reversed(rows) if row.key == key), None)
    if row is None:
        raise ConfigError(f"the run {name} has no episode {key}, or not yet")
    return row


def _stored(request: Request) -> StoredEpisodes:
    state = request.app.state
    if not hasattr(state, "stored"):
        state.stored = StoredEpisodes()
    stored: StoredEpisodes = state.stored
    return stored


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def _neighbours(
    run: Run, row: EpisodeRow, query: EpisodeQuery, place: int | None
) -> tuple[tuple[str, int | None] | None, tuple[str, int | None] | None]:
    """The keys of the episodes before and after this one, and their places in the table.

    They are those of the table that led here, whose row ``place`` this one was, or else in the order of the commits.
    """
    if place is not None:
        first = max(0, place - 1)
        rows = run.episodes(sort=query.sort, descending=query.descending, limit=3, offset=first, **query.filters)
        at = next((index for index, each in enumerate(rows) if each.id == row.id), None)
        if at is not None:
            return _at(rows, at - 1, first), _at(rows, at + 1, first)
    first = max(0, row.id - 2)
    rows = run.episodes(limit=3, offset=first)
    before = [each for each in rows if each.id == row.id - 1]
    after = [each for each in rows if each.id == row.id + 1]
    return _at(before, 0, None), _at(after, 0, None)


def _at(rows: Sequence[EpisodeRow], index: int, first: int | None) -> tuple[str, int | None] | None:
    if not 0 <= index < len(rows):
        return None
    return str(rows[index].key), None if first is None else first + index


def _conversation(request: Request, run: Run, row: EpisodeRow, episode: Episode) -> dict[str, Any]:
    start = max(0, _whole(request, "from") or 0)
    is_written = request.query_params.get("written") == "1"
    reading = Reading(episode)
    return {
        "turns": reading.turns(start, TURNS, is_written=is_written),
        "turn_count": reading.count,
        "start": start,
        "step": TURNS,
        "is_written": is_written,
    }


def _tokens(request: Request, run: Run, row: EpisodeRow, episode: Episode) -> dict[str, Any]:
    pieces = pieces_of(run)
    tokens = TokenView(episode.tree, run.trained(row.key), pieces)
    given = _whole(request, "from")
    start = tokens.first_sampled() if given is None else min(max(0, given), max(0, len(tokens) - 1))
    colour = request.query_params.get("colour", "logprob")
    if colour not in COLOURS:
        raise WrongQuestion(f"colour={shown(colour, 40)} is unknown", fix=near_matches(colour, COLOURS))
    return {
        "tokens": tokens.page(start, TOKENS),
        "count": len(tokens),
        "start": start,
        "step": TOKENS,
        "colour": colour,
        "colours": COLOURS,
        "reasons": REASONS,
        "missing": pieces.missing,
        "calls": {call.id: index for index, call in enumerate(episode.calls)},
        "spans": tokens.outline(tokens.span_count),
    }


def _tree(request: Request, run: Run, row: EpisodeRow, episode: Episode) -> dict[str, Any]:
    pieces = pieces_of(run)
    tokens = TokenView(episode.tree, None, pieces)
    spans = tokens.outline(_SPANS)
    return {
        "spans": spans,
        "span_count": tokens.span_count,
        "width": max((span.depth + span.size for span in spans), default=1),
        "lanes": 1 + max((span.lane for span in spans), default=0),
        "calls": {call.id: (index, call) for index, call in enumerate(episode.calls)},
        "excerpt": _EXCERPT,
        "texts": [pieces.text(episode.tree.spans[span.index].ids[:_EXCERPT]) for span in spans],
    }


def _timeline(request: Request, run: Run, row: EpisodeRow, episode: Episode) -> dict[str, Any]:
    line = timeline(episode)
    return {"line": line, "stretches": line.stretches[:_STRETCHES], "calls": episode.calls[:_CALLS]}


_SHOWN: Final = {"conversation": _conversation, "tokens": _tokens, "tree": _tree, "timeline": _timeline}


def _part(request: Request) -> Response:
    """A text of an episode that its page shows only the beginning of."""
    name, key = request.path_params["run"], request.path_params["key"]
    run = frame.library(request).run(name)
    row = _row(run, name, key)
    episode = _stored(request).read(run, row)
    part = request.query_params.get("part", "")
    text = text_of_part(episode, part)
    start = min(max(0, _whole(request, "from") or 0), len(text))
    end = min(len(text), start + LONGEST_PART)
    return frame.page(
        request,
        "episode_part.html",
        run=name,
        row=row,
        part=part,
        text=text[start:end],
        start=start,
        end=end,
        count=len(text),
    )


ROUTES: list[BaseRoute] = [
    Route("/runs/{run}/episodes/{key}", _episode, name="episode"),
    Route("/runs/{run}/episodes/{key}/part", _part, name="episode_part"),
]
