"""The page Runs: every run with how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.view import frame
from agentrl.view.standing import mark, standing

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES"]


def _runs(request: Request) -> Response:
    runs = list(frame.library(request).runs())
    etag = frame.tag_of(*((name, *mark(run)) for name, run in runs))
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    listed = sorted((standing(name, run) for name, run in runs), key=lambda each: each.started, reverse=True)
    places = frame.library(request).places
    return frame.page(request, "runs.html", etag=etag, listed=listed, places=places)


ROUTES: list[BaseRoute] = [Route("/", _runs, name="runs")]
