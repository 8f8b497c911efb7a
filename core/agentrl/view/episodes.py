"""The page Episodes: a table of episodes by filter and order."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.errors import Side
from agentrl.rollout.contract import Fate, Outcome, Phase
from agentrl.runs.contract import SortKey
from agentrl.view import frame
from agentrl.view.query import PAGE, PRESETS, EpisodeQuery
from agentrl.view.stored import store_mark

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES", "TABS"]

_COLUMNS: tuple[tuple[SortKey, str, str, str], ...] = (
    ("committed", "Episode", "", "Its key; in the order in which they finished"),
    ("step", "Step", "n wide", "The optimiser step that trained its group"),
    ("task", "Task", "n wide", "Index of its task in the task set"),
    ("outcome", "Outcome", "", "Rewarded, rejected, or failed and on which side"),
    ("fate", "Fate", "", "What became of it in its step"),
    ("reward", "Reward", "n", ""),
    ("advantage", "Advantage", "n", "Mean over its trained tokens"),
    ("surprise", "Surprise", "n", "Mean of -log-probability over its sampled tokens, in nats a token"),
    ("tokens", "Tokens", "n", "Tokens that the policy sampled"),
    ("calls", "Calls", "n wide", "Calls to the model"),
    ("seconds", "Time", "n wide", "Wall-clock time of its last attempt"),
    ("attempts", "Attempts", "n wide", "How many times the agent was run"),
    ("version", "Version", "n wide", "Policy version when it was dispatched"),
    ("started", "Started", "wide", "When its last attempt began"),
)
_MOST_TOOLS = 200


def _episodes(request: Request) -> Response:
    run = frame.library(request).run(request.path_params["run"])
    etag = frame.tag_of(*store_mark(run), str(request.url))
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    query = EpisodeQuery.read(request.query_params, others=("token",))  # As an old address may have it.
    rows, count = run.page(
        sort=query.sort, descending=query.descending, limit=PAGE, offset=query.offset, **query.filters
    )
    return frame.page(
        request,
        "episodes.html",
        etag=etag,
        run=request.path_params["run"],
        query=query,
        rows=rows,
        count=count,
        columns=_COLUMNS,
        presets=[(name, EpisodeQuery.read(fields).address()) for name, fields in PRESETS.items()],
        chosen=query.address(offset=None),
        tools=sorted(map(str, run.counts("tool")))[:_MOST_TOOLS],
        choices={
            "phase": get_args(Phase),
            "outcome": get_args(Outcome),
            "fate": get_args(Fate),
            "side": get_args(Side),
        },
        before=query.address(offset=max(0, query.offset - PAGE) or None) if query.offset else None,
        after=query.address(offset=query.offset + PAGE) if query.offset + PAGE < count else None,
    )


TABS = [("Episodes", "episodes")]
ROUTES: list[BaseRoute] = [Route("/runs/{run}/episodes", _episodes, name="episodes")]
