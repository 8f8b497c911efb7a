"""A window of the browser, and all that went wrong in it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request, Response

_LOOPBACK = {"127.0.0.1", "localhost", "::1", "rebound.test"}


class Watched:
    """A ``page`` whose requests, console messages and uncaught errors are kept from the beginning."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requested: list[str] = []
        """The URL of every request that the window has made."""
        self.problems: list[str] = []
        """Console warnings and errors, uncaught errors, failed requests, answers of 400 and more, dialogs."""
        self._expected: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("popup", lambda popup: self.problems.append(f"a window opened: {popup.url}"))
        page.context.on("request", lambda request: self.requested.append(request.url))
        page.context.on("requestfailed", self._fail)
        page.context.on("response", self._answer)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console {message.type}: {message.text} ({message.location.get('url', '')})")

    def _fail(self, request: Request) -> None:
        # A request that the window itself gave up, since it went on to another page, has not failed.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _answer(self, response: Response) -> None:
        if response.status >= 400:
            self.problems.append(f"answer {response.status}: {response.url}")

    def expect(self, pattern: str) -> None:
        """Let problems that hold the regular expression ``pattern`` pass."""
        self._expected.append(pattern)

    @property
    def strangers(self) -> list[str]:
        """Requests to any other machine than this one."""
        inner = ("data", "blob", "about")
        urls = [(url, urlsplit(url)) for url in self.requested]
        return [url for url, parts in urls if parts.scheme not in inner and parts.hostname not in _LOOPBACK]

    def assert_clean(self) -> None:
        """Fail for a problem that no test has expected, and for a request that left this machine."""
        assert not self.strangers
        unexpected = [each for each in self.problems if not any(re.search(one, each) for one in self._expected)]
        assert not unexpected, "\n".join(unexpected)

    def sideways(self) -> list[str]:
        """What reaches beyond the window, outside of a part that scrolls by itself; empty where nothing does."""
        found: list[str] = self.page.evaluate(
            """() => {
                const width = document.documentElement.clientWidth, whole = document.documentElement.scrollWidth;
                const wide = [...document.querySelectorAll("body *")].filter(e => {
                    const box = e.getBoundingClientRect();
                    if (!box.width || box.right <= width + 0.5) return false;
                    for (let up = e.parentElement; up && up !== document.body; up = up.parentElement)
                        if (/auto|scroll|hidden/.test(getComputedStyle(up).overflowX)) return false;
                    return true;
                });
                return [...(whole > width ? [`${whole} of ${width} pixels`] : []),
                        ...wide.slice(0, 8).map(e => e.outerHTML.slice(0, 120))];
            }"""
        )
        return found
