"""The web page over a folder of runs, as an ASGI application that only reads.

A page is a module of this package, named in ``PAGES``, with

- ``ROUTES``: starlette's routes, each with a name, by which templates make links: ``url_for("run", run=NAME)``. An
  endpoint is a plain function of the request, which starlette runs in a thread, so it may read files. It gets runs by
  ``frame.library(request).run(name)``, and answers with ``frame.page(request, "TEMPLATE.html", …)`` or
  ``frame.data(…)``. An ``AgentRLError`` that it raises is shown in a sentence.
- optionally ``TABS``: pairs of a label and a route's name that takes ``run`` alone. They are in the navigation of all
  pages of a run, whose templates extend ``run.html`` and are given ``run``, the run's name.

Templates are in ``templates/``; they extend ``base.html``, which documents its blocks. Scripts and style sheets are in
``static/``, and are loaded by ``url_for("asset", name=…)``: the policy of ``security`` allows no script and no style
within a page, so a style that depends on a value is a class, or is set by a script.

What changes while a run goes on stands in an element with an ``id`` and the attribute ``data-live``. The script of
every page asks for the page again every two seconds while it is looked at, and puts the new content of these elements
in the place of the old. The page's endpoint finds out cheaply whether there is anything new: see ``frame.unchanged``.
Rows that ``j`` and ``k`` go through have the attribute ``data-row``, and the field of ``/`` has ``data-search``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from agentrl.errors import AgentRLError, ConfigError
from agentrl.view import frame
from agentrl.view.query import WrongQuestion
from agentrl.view.security import Guard, is_loopback

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from agentrl.view.library import Library

__all__ = ["PAGES", "view_app"]

PAGES = ("assets", "overview", "comparison", "progress", "episodes", "episode", "group", "task")
"""The modules of the pages, in the order of their tabs."""


def view_app(
    library: Library, *, is_own: Callable[[str], bool] = is_loopback, token: str | None = None, cookie: str = ""
) -> ASGIApp:
    """The application that shows the runs of ``library``. The other arguments are those of ``security.Guard``."""
    modules = [import_module(f"agentrl.view.{name}") for name in PAGES]
    routes: Iterable[BaseRoute] = [route for module in modules for route in module.ROUTES]
    app = Starlette(
        routes=list(routes),
        exception_handlers={AgentRLError: _failed, HTTPException: _refused},
    )
    app.state.library = library
    app.state.tabs = [tab for module in modules for tab in getattr(module, "TABS", ())]
    return Guard(app, is_own, token, cookie)  # Outermost: what fails in starlette itself has the headers too.


async def _failed(request: Request, error: Any) -> Response:
    """What cannot be shown, in the error's own words: a wrong name is the reader's, a damaged file is the run's."""
    status = 400 if isinstance(error, WrongQuestion) else 404 if isinstance(error, ConfigError) else 503
    return frame.answer(request, status, str(error))


async def _refused(request: Request, error: Any) -> Response:
    said = f"there is no page {request.url.path}" if error.status_code == 404 else error.detail
    return frame.answer(request, error.status_code, said)
