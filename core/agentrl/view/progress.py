"""The page Run: how a run goes, in curves and in words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.errors import RunError, shown
from agentrl.view import frame
from agentrl.view.account import Account, account
from agentrl.view.columns import columns
from agentrl.view.plots import groups_of
from agentrl.view.query import WrongQuestion
from agentrl.view.standing import mark, standing

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES", "TABS"]

_MOST_NAMES = 200
"""Most metrics that one request asks for."""


def _run(request: Request) -> Response:
    name = request.path_params["run"]
    run = frame.library(request).run(name)
    etag = frame.tag_of(name, *mark(run))
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    now = standing(name, run)
    try:
        told = account(run, is_over=now.state != "running")
    except RunError:  # The standing says what cannot be read.
        told = Account()
    sources = [{"run": name, "url": frame.link(request, "curves", run=name)}]
    summary = None if now.state in (None, "running") or now.error else run.summary
    return frame.page(
        request,
        "progress.html",
        etag=etag,
        run=name,
        standing=now,
        summary=summary,
        account=told,
        groups=groups_of(told.newest),
        sources=sources,
    )


def _curves(request: Request) -> Response:
    run = frame.library(request).run(request.path_params["run"])
    asked = request.query_params
    names = tuple(dict.fromkeys(asked.getlist("name")))
    if len(names) > _MOST_NAMES:
        raise WrongQuestion(f"{len(names)} metrics at once are too many: ask for at most {_MOST_NAMES}")
    numbers = {}
    for field in ("after", "until", "every", "file"):
        text = asked.get(field, "")
        if text and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise WrongQuestion(f"{field}={shown(text, 40)} is no number from 0 on")
        numbers[field] = int(text) if text else None
    lines, file = run.metrics(), _file_of(run.path)
    known = file == numbers["file"]
    found = columns(
        lines,
        names,
        (numbers["after"] or 0) if known else 0,
        numbers["until"] if known else None,
        (numbers["every"] or 0) if known else 0,
    )
    return frame.data(found | {"file": file})


def _file_of(folder: os.PathLike[str]) -> int:
    """A number that another file of metrics, which a resumed run puts in the place of the old, has not."""
    try:
        return os.stat(os.path.join(folder, "metrics.jsonl")).st_ino % 2**53  # What JavaScript holds exactly.
    except OSError:
        return 0


ROUTES: list[BaseRoute] = [
    Route("/runs/{run}", _run, name="run"),
    Route("/runs/{run}/curves.json", _curves, name="curves"),
]
TABS = [("Run", "run")]
