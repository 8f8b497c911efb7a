"""Plugins that may not be on an index: those beside core, where core was installed from a checkout."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agentrl.plugins.entries import normalised
from agentrl.plugins.versions import CORE

__all__ = ["beside_core", "install_command", "installed_from", "provider"]


def installed_from() -> Path | None:
    """The folder or file that pip had this core from, if that was no index (PEP 610), and it is still there."""
    url = urlsplit(_direct_url())
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.exists() else None


def beside_core(project: str, core: Path | None = None) -> Path | None:
    """The folder of the plugin ``project`` in the checkout ``core``, by default the one that core is from."""
    checkout = core or installed_from()
    folder = checkout / "plugins" / normalised(project) if checkout else None
    return folder if folder is not None and folder.is_dir() else None


def install_command(project: str) -> str:
    """How ``project`` is installed, also where it is on no index."""
    folder = beside_core(project)
    if folder is None:
        return f"pip install {project}, or in a checkout of it pip install ./plugins/{project}"
    return f"pip install {shlex.quote(str(folder))}, or pip install {project} where it is on an index"


def provider(kind: str, name: str) -> str | None:
    """The plugin in core's checkout that brings ``name`` of ``kind``."""
    return next((project for project, names in _declared(kind) if name in names), None)


def _direct_url() -> str:
    # A build leaves metadata in the checkout too, without this file, and there it is found first.
    texts = (found.read_text("direct_url.json") for found in metadata.distributions(name=CORE))
    text = next(filter(None, texts), None)
    return str(json.loads(text)["url"]) if text else ""


def _declared(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import tomllib

    core = installed_from()
    for path in sorted(core.glob("plugins/*/pyproject.toml")) if core and core.is_dir() else ():
        try:
            project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
            yield project["name"], project.get("entry-points", {}).get(f"agentrl.{kind}", {})
        except (OSError, ValueError, KeyError):  # What is being written beside core is no reason to fail here.
            continue
