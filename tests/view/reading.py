"""Reads a page as a test compares it: the numbers of its rows, its links, and whether anything in it would run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

__all__ = ["Page"]

VOID = {"br", "hr", "input", "link", "meta", "img"}
LOADS = {"src", "srcset", "action", "formaction", "poster", "data", "xlink:href", "background"}


class Page(HTMLParser):
    """A page, of which nothing runs or loads but the files beside the pages."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[dict[str, Any]] = []
        """Of every element with ``data-row``: ``id``, ``text``, its ``cells``, ``links`` and ``numbers``."""
        self.links: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.numbers: list[float | None] = []
        self._open: list[str] = []
        self._row: int | None = None
        self.feed(html)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert not [name for name in given if name.startswith("on") or name == "style"], given
        assert tag not in {"iframe", "object", "embed", "base", "style", "img", "frame"}
        for name in LOADS & given.keys():
            assert str(given[name]).startswith("/"), given
        if "href" in given:
            assert re.match(r"/|#|\?|https?:|mailto:", given["href"]), given
            assert tag in ("a", "link"), tag
            if tag == "link" or not given["href"].startswith(("http", "mailto")):
                assert not given["href"].startswith("//")
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        if "data-row" in given:
            self._row = len(self._open)
            self.rows.append({"id": given.get("id"), "text": "", "cells": [], "links": [], "numbers": []})
        if tag in ("td", "th") and self._row is not None:
            self.rows[-1]["cells"].append("")
        if tag == "a":
            self.links.append(str(given["href"]))
            if self._row is not None:
                self.rows[-1]["links"].append(given["href"])
        if tag == "data":
            self._number(float(given["value"]))
        if given.get("class") == "none":
            self._number(None)

    def _number(self, value):
        self.numbers.append(value)
        if self._row is not None:
            self.rows[-1]["numbers"].append(value)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self._open.pop() == tag
        if self._row is not None and len(self._open) < self._row:
            self._row = None

    def handle_data(self, data):
        assert not self._open or self._open[-1] != "script" or not data.strip()
        self.text += data
        if self._row is not None:
            self.rows[-1]["text"] += data
            if self.rows[-1]["cells"]:
                self.rows[-1]["cells"][-1] += data
