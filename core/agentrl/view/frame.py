"""The frame of every page: templates that escape every text, and the answers that pages are made of.

No text that a template is given is HTML, so what a model wrote is shown as it is, and never runs: autoescape is on, and
no template switches it off. What ``markup`` has made of a text is the one exception.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
from starlette.responses import HTMLResponse, JSONResponse, Response

from agentrl.plugins.entries import core_version
from agentrl.reporting.plain import duration
from agentrl.view.assets import styles_of_maps
from agentrl.view.markup import readable, visible, visible_token
from agentrl.view.query import address

if TYPE_CHECKING:
    from starlette.requests import Request

    from agentrl.view.library import Library

__all__ = ["answer", "data", "document", "library", "link", "number", "page", "tag_of", "unchanged"]

_SERVER = secrets.token_hex(8)
"""Another server, such as one of another version, makes another page of what is the same."""


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("agentrl.view", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "duration": duration, "when": _when}
    made.filters |= {"address": address, "readable": readable, "token": visible_token, "visible": visible}
    made.globals |= {"version": core_version(), "styles_of_maps": styles_of_maps}
    return made


def page(request: Request, template: str, /, status: int = 200, etag: str | None = None, **context: Any) -> Response:
    """The page that ``template`` makes of ``context``.

    Beside it, templates have ``request``, ``here``, the page's own path, and ``url_for(route, …)``.

    ``etag``, where it is given, is that of ``unchanged``.
    """
    made = _templates().get_template(template)
    here = quote(request.scope["path"])
    text = made.render(request=request, here=here, etag=etag, url_for=partial(link, request), **context)
    return HTMLResponse(text, status, headers={"etag": etag, "cache-control": "no-cache"} if etag else None)


def document(template: str, /, **context: Any) -> str:
    """What ``template`` makes of ``context`` where there is no request: a file that stands for itself."""
    return _templates().get_template(template).render(**context)


def link(request: Request, route: str, /, **path: object) -> str:
    """The address of a page of the route's name; any text may be in ``path``."""
    quoted = {name: quote(str(value), safe="") for name, value in path.items()}
    return str(request.app.url_path_for(route, **quoted))


def data(content: Any, status: int = 200) -> Response:
    """``content`` as JSON; a number that is not finite has to be ``None``."""
    return JSONResponse(content, status)


def answer(request: Request, status: int, message: str) -> Response:
    """A page, or for a script the JSON ``{"error": …}``, that says in a sentence why there is nothing else."""
    if request.url.path.endswith(".json"):
        return data({"error": message}, status)
    return page(request, "message.html", status, message=message)


def library(request: Request) -> Library:
    """The runs that the server shows."""
    found: Library = request.app.state.library
    return found


def tag_of(*parts: object) -> str:
    """The tag of what is known by ``parts``: a page made of the same ones is the same page."""
    return f'W/"{hashlib.sha256(repr((_SERVER, *parts)).encode()).hexdigest()[:32]}"'


def unchanged(request: Request, etag: str) -> Response | None:
    """The answer 304 where the browser has the page of this tag already, else ``None``.

    The script of every page asks for it again and again while it is looked at, so a page that goes on changing finds
    out cheaply what its tag is, and does nothing else where this returns an answer.
    """
    given = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
    return Response(status_code=304, headers={"etag": etag, "cache-control": "no-cache"}) if etag in given else None


def number(value: float | None) -> str:
    """A number in a few characters, as people read it: ``0.9504``, ``12,345``, ``3.3e-07``; a dash for ``None``."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.1f}" if size >= 1000 else f"{value:.4g}"


def _when(seconds: float) -> str:
    """A time in seconds since the epoch, as this machine's clock shows it."""
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
