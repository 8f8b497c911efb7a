"""Opens every page that links lead to, a few of each kind."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qsl, urldefrag, urlsplit

from tests.browser.watching import Watched

SCREENSHOTS = os.environ.get("VIEW_SCREENSHOTS")
"""A folder that takes a picture of every page that is opened; by default none is taken."""
_A_KIND = 2


def kind_of(url: str) -> str:
    """The path without its numbers, those in keys of episodes too, and the view that is asked for: what tells pages
    apart. Pages of training and of evaluations are of two kinds."""
    parts = urlsplit(url)
    path = re.sub(r"(?<=/)(train|eval|eval-greedy)(-\d+)+", r"\1-N", parts.path)
    view = dict(parse_qsl(parts.query)).get("view")
    return re.sub(r"\d+", "N", path) + (f"?view={view}" if view else "")


def crawl(window: Watched, start: str, *, most: int = 60, picture: str = "") -> list[str]:
    """Open ``start`` and at most ``most`` pages that can be reached from it; at most a few of each kind.

    Every page has a heading, and none is wider than the window.
    """
    waiting, opened, kinds = [start], [], Counter[str]()
    seen = {start}
    while waiting and len(opened) < most:
        url = waiting.pop(0)
        if kinds[kind_of(url)] >= _A_KIND:
            continue
        kinds[kind_of(url)] += 1
        window.page.goto(url, wait_until="load")
        opened.append(url)
        assert window.page.locator("h1").first.inner_text().strip(), f"{url} has no heading"
        assert window.sideways() == [], url
        if picture and kinds[kind_of(url)] == 1:
            shoot(window, f"{picture}-{len(opened):02}-{kind_of(url)}")
        found = window.page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
        for link in (urldefrag(each).url for each in found):
            if link not in seen and urlsplit(link).netloc == urlsplit(start).netloc:
                seen.add(link)
                waiting.append(link)
    return opened


def shoot(window: Watched, name: str) -> None:
    """Take a picture of the whole page, where pictures are taken."""
    if SCREENSHOTS:
        path = Path(SCREENSHOTS) / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.png"
        window.page.screenshot(path=path, full_page=True)
