"""The page Runs: every run with how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.errors import shown
from agentrl.view import frame
from agentrl.view.query import WrongQuestion
from agentrl.view.standing import begun, mark, standing

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES"]


_SHOWN = 25
"""Runs on one page: the config of each has to be read, and there may be thousands."""


def _runs(request: Request) -> Response:
    library = frame.library(request)
    text = request.query_params.get("from", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise WrongQuestion(f"from={shown(text, 40)} is no number from 0 on")
    first = int(text)
    runs = sorted(library.runs(), key=lambda each: begun(each[1]), reverse=True)
    listed = runs[first : first + _SHOWN]
    etag = frame.tag_of(first, len(runs), *((name, *mark(run)) for name, run in listed))
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    return frame.page(
        request,
        "runs.html",
        etag=etag,
        listed=[standing(name, run) for name, run in listed],
        places=library.places,
        first=first,
        count=len(runs),
        newer=max(0, first - _SHOWN) if first else None,
        older=first + _SHOWN if first + _SHOWN < len(runs) else None,
    )


ROUTES: list[BaseRoute] = [Route("/", _runs, name="runs")]
