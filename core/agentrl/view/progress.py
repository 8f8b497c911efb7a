"""The page Run: how a run goes, in curves and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.view import frame
from agentrl.view.standing import mark, standing

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES", "TABS"]


def _run(request: Request) -> Response:
    name = request.path_params["run"]
    run = frame.library(request).run(name)
    etag = frame.tag_of(name, *mark(run))
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    return frame.page(request, "progress.html", etag=etag, run=name, standing=standing(name, run))


ROUTES: list[BaseRoute] = [Route("/runs/{run}", _run, name="run")]
TABS = [("Run", "run")]
