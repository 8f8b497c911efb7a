"""The files beside the pages: the style sheet and script of this package, and plotly's own bundle from where it is
installed. No page loads anything else."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES", "bundle", "styles_of_maps"]

_STYLE_ID = re.compile(rb'getElementById\("([0-9a-f]{64})"\)')
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FRESH = {"cache-control": "no-cache"}
"""It is asked for again each time, and answered with 304: another version may be installed meanwhile."""


def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    path = Path(str(resources.files("agentrl.view"))) / "static" / name
    if path.suffix not in _TYPES or not path.is_file():
        raise ConfigError(f"there is no file {name!r} beside the pages")
    return _file(request, path, _TYPES[path.suffix])


def _plotly(request: Request) -> Response:
    path = bundle()
    if path is None:
        raise ConfigError("the installed plotly has no plotly.min.js, so there are no plots", fix="pip install plotly")
    return _file(request, path, "text/javascript")


@cache
def bundle() -> Path | None:
    """The file of plotly's own bundle, as its package ships it; ``None`` where there is none."""
    found = find_spec("plotly")  # The package itself, of which only a file is wanted, takes a second to import.
    folders = (Path(folder) for folder in (found and found.submodule_search_locations) or ())
    files = (folder / "package_data" / "plotly.min.js" for folder in folders)
    return next((file for file in files if file.is_file()), None)


@cache
def styles_of_maps() -> tuple[str, ...]:
    """The ids of the style elements that plotly's bundle adds for maps when it is loaded, unless they are there.

    A page that has elements of these ids spares the browser from refusing styles that nothing here needs.
    """
    path = bundle()
    text = b"" if path is None else path.read_bytes()
    return tuple(dict.fromkeys(each.decode() for each in _STYLE_ID.findall(text)))


def _file(request: Request, path: Path, kind: str) -> Response:
    made = FileResponse(path, media_type=kind, headers=_FRESH, stat_result=path.stat())
    if request.headers.get("if-none-match") == made.headers["etag"]:
        return Response(status_code=304, headers=_FRESH | {"etag": made.headers["etag"]})
    return made


ROUTES: list[BaseRoute] = [
    Route("/assets/plotly.js", _plotly, name="plotly"),
    Route("/assets/{name}", _asset, name="asset"),
]
