"""The page Compare: several runs on one plot, and what differs in their configs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.config.changes import changes
from agentrl.errors import AgentRLError
from agentrl.runs.reader import Run
from agentrl.view import frame
from agentrl.view.account import account
from agentrl.view.plots import Group, Plot, groups_of
from agentrl.view.query import WrongQuestion
from agentrl.view.standing import mark, standing

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES", "Difference", "differences"]

_MOST = 8
"""Most runs that are compared: there are as many colours, and more cannot be told apart."""
_USUAL = ("reward/mean", "evaluation/reward")


class Difference(NamedTuple):
    """A key in which the configs of runs differ."""

    key: str
    values: tuple[str, ...]
    """Its value in each run, as it is written in a config."""


def differences(runs: Sequence[Run]) -> list[Difference]:
    """The keys in which the configs of ``runs`` differ, sorted; the names and places of the runs are left out.

    Raises ``ConfigError`` where this version cannot read one of the configs.
    """
    first = runs[0]
    found: dict[str, list[Any]] = {}
    for index, run in enumerate(runs[1:], 1):
        for change in changes(first.config, run.config, first.path):
            found.setdefault(change.key, [change.before] * len(runs))[index] = change.after
    return [Difference(key, tuple(map(_written, values))) for key, values in sorted(found.items())]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _compare(request: Request) -> Response:
    library = frame.library(request)
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if not names:
        raise WrongQuestion("no run is named to be compared", fix="mark runs in the list of all runs")
    if len(names) > _MOST:
        raise WrongQuestion(f"{len(names)} runs are too many to be told apart", fix=f"compare at most {_MOST} at once")
    runs = [library.run(name) for name in names]
    metrics = tuple(dict.fromkeys(each for each in request.query_params.getlist("metric") if each)) or _USUAL
    etag = frame.tag_of(metrics, *((name, *mark(run)) for name, run in zip(names, runs, strict=True)))
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    standings = [standing(name, run) for name, run in zip(names, runs, strict=True)]
    known = _known(runs)
    config, unread = _configs(runs)
    drawn = [*(each for each in metrics if each in known), *(each for each in metrics if each not in known)]
    return frame.page(
        request,
        "compare.html",
        etag=etag,
        standings=standings,
        differences=config,
        unread=unread,
        chosen=metrics,
        known=known,
        groups=[Group("compared", "Compared", "Which run does better?", (Plot(", ".join(drawn), tuple(drawn)),))],
        sources=[{"run": name, "url": frame.link(request, "curves", run=name)} for name in names],
    )


def _known(runs: Sequence[Run]) -> list[str]:
    """Every metric that one of the runs has, in the order of a run's page. A run that cannot be read adds none."""
    names: dict[str, None] = {}
    for run in runs:
        try:
            names |= dict.fromkeys(account(run, is_over=False).newest)
        except AgentRLError:
            continue
    return [name for group in groups_of(names) for plot in group.plots for name in plot.metrics]


def _configs(runs: Sequence[Run]) -> tuple[list[Difference], str | None]:
    try:
        return differences(runs), None
    except AgentRLError as error:
        return [], str(error)


ROUTES: list[BaseRoute] = [Route("/compare", _compare, name="compare")]
