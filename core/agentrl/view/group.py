"""The page of a group: its episodes side by side, and where they first differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.errors import ConfigError
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import EpisodeRow
from agentrl.tokens.contract import Position, TokenTree
from agentrl.view import frame
from agentrl.view.pieces import Pieces, pieces_of
from agentrl.view.query import phase_of, whole
from agentrl.view.reading import ShownText, shown_text

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES", "Difference", "Side", "first_difference", "main_path"]

_MEMBERS = 16
"""Members whose tokens and last words are shown; the table has all of them."""
_BEFORE = 24
_BETWEEN = 200
_AFTER = 48


@dataclass(frozen=True, slots=True)
class Side:
    """What a member says around the first difference, as texts in their order."""

    before: str
    token: str
    """The token at the first difference; empty where the member ends there."""
    between: str
    """What follows that it still has in common with another member."""
    alone: str
    """The token from which on it is like no other member; empty where that is ``token``, or where it is like one to
    its end."""
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the members of a group first differ."""

    place: int
    """How many tokens all of them have in common from the beginning."""
    sides: tuple[Side, ...]
    """For each member."""


def main_path(tree: TokenTree) -> list[int]:
    """The token ids of the longest conversation of an episode, up to the end of its last completion."""
    best: tuple[int, int] = (0, -1)
    depths: list[int] = []
    for index, span in enumerate(tree.spans):
        depths.append(span.fork + (depths[span.parent] if span.parent >= 0 else 0))
        if span.sampled is not None:
            best = max(best, (depths[index] + len(span.ids), index))
    index = best[1]
    return tree.path(Position(index, len(tree.spans[index].ids))) if index >= 0 else []


def first_difference(paths: Sequence[Sequence[int]], pieces: Pieces) -> Difference | None:
    """The first token in which any of ``paths`` differs from the others; ``None`` where all are alike."""
    if len(paths) < 2:
        return None
    place = min(_alike(paths[0], path) for path in paths[1:])
    if all(len(path) == place for path in paths):
        return None
    return Difference(place, tuple(_side(index, paths, place, pieces) for index in range(len(paths))))


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two paths have in common from their beginnings."""
    return next(
        (index for index, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )


def _side(index: int, paths: Sequence[Sequence[int]], place: int, pieces: Pieces) -> Side:
    path = paths[index]
    alone = max(_alike(path, other) for number, other in enumerate(paths) if number != index)
    shown = min(alone, place + _BETWEEN)
    if alone == place or alone > shown:
        between, single, after = "", "", path[place + 1 : place + 1 + _AFTER]
    else:
        between, single = pieces.text(path[place + 1 : alone]), pieces.text(path[alone : alone + 1])
        after = path[alone + 1 : alone + 1 + _AFTER]
    before = pieces.text(path[max(0, place - _BEFORE) : place])
    return Side(before, pieces.text(path[place : place + 1]), between, single, pieces.text(after))


@dataclass(frozen=True, slots=True)
class _Member:
    row: EpisodeRow
    side: Side | None
    last: ShownText | None
    """Its last words."""


def _group(request: Request) -> Response:
    name = request.path_params["run"]
    run = frame.library(request).run(name)
    phase, ordinal = phase_of(request.path_params["phase"]), whole("group", request.path_params["group"])
    found = run.groups(phase=phase, group=ordinal, limit=1)
    if not found:
        raise ConfigError(f"the run {name} has no group {ordinal} of the phase {phase}, or not yet")
    group = found[0]
    etag = frame.tag_of(run.path, str(request.url), group)
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    chosen = group.episodes[:_MEMBERS]
    episodes = [run.episode(row.key) for row in chosen]
    pieces = pieces_of(run)
    # An episode that broke off before it had a token says nothing of how the others differ.
    paths = [main_path(episode.tree) for episode in episodes]
    told = [index for index, path in enumerate(paths) if path]
    difference = first_difference([paths[index] for index in told], pieces)
    sides = {} if difference is None else dict(zip(told, difference.sides, strict=True))
    return frame.page(
        request,
        "group.html",
        etag=etag,
        run=name,
        group=group,
        members=[
            _Member(row, sides.get(index), _last_words(episode))
            for index, (row, episode) in enumerate(zip(chosen, episodes, strict=True))
        ],
        difference=difference,
        missing=pieces.missing,
    )


def _last_words(episode: Episode) -> ShownText | None:
    content = episode.calls[-1].message.get("content") if episode.calls else None
    return shown_text(content, "", is_plain=False, most=1500) if isinstance(content, str) else None


ROUTES: list[BaseRoute] = [Route("/runs/{run}/groups/{phase}/{group}", _group, name="group")]
