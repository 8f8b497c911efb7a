"""A report: how a run went and what some of its episodes were, as one HTML file that can be sent.

The file holds everything that it shows: plotly's bundle from the installed package, the curves as numbers, and the
episodes as the pages show them. Its policy allows the scripts that it is written with, by their digests, and nothing
else: no other script runs, and nothing is loaded from anywhere when it is opened.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup

from agentrl.errors import ConfigError, RunError
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import EpisodeFilter, EpisodeRow, SortKey
from agentrl.runs.reader import Run
from agentrl.view import frame
from agentrl.view.account import Account, account
from agentrl.view.assets import bundle
from agentrl.view.columns import columns
from agentrl.view.plots import groups_of
from agentrl.view.reading import TURNS, Reading, ShownTurn
from agentrl.view.standing import standing

__all__ = ["Chapter", "chosen_by", "interesting", "named", "report"]

_EACH = 3
"""Episodes of each kind that are shown where nobody chooses."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """Episodes under a heading."""

    title: str
    rows: tuple[EpisodeRow, ...]


@dataclass(frozen=True, slots=True)
class _Told:
    """An episode as the report shows it."""

    row: EpisodeRow
    episode: Episode
    task: str
    turns: list[ShownTurn]
    left: int
    """Turns that are left out."""


def interesting(run: Run) -> list[Chapter]:
    """The best, the worst and the most surprising episodes of training, or of the evaluations where there are none."""
    phase: EpisodeFilter = {"phase": "train"} if run.count(phase="train") else {}
    kinds: tuple[tuple[str, SortKey, bool], ...] = (
        ("The best", "reward", True),
        ("The worst", "reward", False),
        ("The most surprising", "surprise", True),
    )
    shown: set[int] = set()
    chapters = []
    for title, sort, descending in kinds:
        # Some may be in a chapter before, so a few more are read than are shown.
        rows = run.episodes(sort=sort, descending=descending, limit=_EACH * len(kinds), **phase)
        new = [row for row in rows if row.id not in shown and getattr(row, sort) is not None][:_EACH]
        shown |= {row.id for row in new}
        chapters.append(Chapter(title, tuple(new)))
    return [chapter for chapter in chapters if chapter.rows]


def named(run: Run, keys: Sequence[str]) -> list[Chapter]:
    """The episodes of ``keys``. Raises as ``Run.row`` does where there is none of that key."""
    return [Chapter("Chosen episodes", tuple(run.row(key) for key in dict.fromkeys(keys)))]


def chosen_by(run: Run, filters: EpisodeFilter, sort: SortKey, descending: bool, limit: int) -> list[Chapter]:
    """At most ``limit`` episodes that match ``filters``, in their order."""
    rows = run.episodes(sort=sort, descending=descending, limit=limit, **filters)
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in filters.items())
    title = "Chosen episodes" + (f": {told}" if told else "")
    return [Chapter(title, rows)] if rows else []


def report(run: Run, chapters: Sequence[Chapter]) -> str:
    """The report of ``run`` with the episodes of ``chapters``, as an HTML document.

    Raises what the reader of the run raises, and ``ConfigError`` where the installed plotly has no bundle.
    """
    now = standing(run.name, run)
    try:
        told = account(run, is_over=now.state != "running")
    except RunError:  # The standing says what cannot be read.
        told = Account()
    scripts = [_script(text) for text in (_plotly(), _static("report.js"), _static("curves.js"))]
    return frame.document(
        "report.html",
        run=run.name,
        policy=_policy(scripts),
        styles=Markup(_static("view.css") + _static("episodes.css")),  # noqa: S704 - files of this package.
        scripts=[Markup(text) for text in scripts],  # noqa: S704 - files of this package and of plotly.
        standing=now,
        summary=None if now.state in (None, "running") or now.error else run.summary,
        account=told,
        groups=groups_of(told.newest),
        sources=[{"run": run.name, "url": "curves"}],
        curves=Markup(_curves(run, list(told.newest))),  # noqa: S704 - JSON without any "<".
        chapters=[(chapter.title, [_told(run, row) for row in chapter.rows]) for chapter in chapters],
    )


def _told(run: Run, row: EpisodeRow) -> _Told:
    episode = run.episode(row.key)
    reading = Reading(episode)
    turns = reading.turns(0, TURNS, is_written=False)
    task = json.dumps(episode.data, ensure_ascii=False, indent=2, default=str)
    return _Told(row, episode, task, turns, reading.count - len(turns))


def _curves(run: Run, names: Sequence[str]) -> str:
    """All curves as JSON that can stand in a script element: it holds no character that could end one."""
    found: dict[str, Any] = columns(run.metrics(), names) | {"file": 1}
    return json.dumps(found).replace("<", "\\u003c")


def _policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy of the file: its own scripts run, and nothing is loaded."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # Plotly sets styles on the elements that it makes.
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; form-action 'none'"


def _script(text: str) -> str:
    """``text`` as the content of a script element, which the first end tag in it would end."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _static(name: str) -> str:
    return (resources.files("agentrl.view") / "static" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    path = bundle()
    if path is None:
        raise ConfigError("the installed plotly has no plotly.min.js, so there are no plots", fix="pip install plotly")
    return path.read_text(encoding="utf-8")
