"""Another site's page, in the same browser, gets to read nothing of what the pages show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route
from tests.browser.serving import served
from tests.browser.watching import Watched

TRIES = {
    "fetch": "fetch(url).then(a => a.text())",
    "fetch with credentials": "fetch(url, {credentials: 'include'}).then(a => a.text())",
    "opaque fetch": "fetch(url, {mode: 'no-cors'}).then(a => a.text()).then(text => text || Promise.reject('empty'))",
    "iframe": """new Promise((got, not) => {
        const frame = document.createElement("iframe");
        frame.onload = () => { try { got(frame.contentDocument.body.innerText) } catch (error) { not(error) } };
        frame.src = url;
        document.body.append(frame);
        setTimeout(() => not("nothing loads"), 3000);
    }).then(text => text || Promise.reject("empty"))""",
    "window": """new Promise((got, not) => {
        const other = window.open(url);
        setTimeout(() => { try { got(other.document.body.innerText) } catch (error) { not(error) } }, 1500);
    }).then(text => text || Promise.reject("empty"))""",
    "script": """new Promise((got, not) => {
        const script = document.createElement("script");
        script.onload = got; script.onerror = () => not("not loaded");
        script.src = url;
        document.body.append(script);
    })""",
    "image": """new Promise((got, not) => {
        const image = new Image();
        image.onload = () => got(image.width); image.onerror = () => not("not loaded");
        image.src = new URL("/assets/icon.svg", url);
    })""",
}
"""Expressions that give something of what is at ``url``, or are rejected."""


async def _page(request: Request) -> HTMLResponse:
    return HTMLResponse("<!doctype html><title>elsewhere</title><link rel='icon' href='data:,'><body></body>")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Another server's page."""
    with served(Starlette(routes=[Route("/", _page)])) as url:
        yield url


@pytest.fixture
def stranger(elsewhere: str, watch: Callable[..., Watched]) -> Watched:
    """A window of the other server's page, in which it is expected that much is refused."""
    window = watch()
    window.expect(".")
    window.page.goto(elsewhere)
    assert window.page.title() == "elsewhere"
    return window


def attempt(window: Watched, url: str, way: str) -> str:
    """What the page got, or, after ``refused: ``, why it got nothing."""
    script = f"url => Promise.resolve().then(() => {TRIES[way]}).then(got => `got: ${{got}}`, no => `refused: ${{no}}`)"
    return str(window.page.evaluate(script, url))


@pytest.mark.parametrize("way", TRIES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_another_sites_page_reads_nothing(site: str, stranger: Watched, way: str, host: str) -> None:
    url = f"http://{host}:{urlsplit(site).port}/"
    assert attempt(stranger, url, way).startswith("refused: ")


def test_the_tries_get_what_their_own_server_has(elsewhere: str, stranger: Watched) -> None:
    assert "elsewhere" in attempt(stranger, elsewhere, "fetch")


def test_a_name_that_is_rebound_to_this_machine_reads_nothing(site: str, watch: Callable[..., Watched]) -> None:
    window = watch()
    window.expect(".")
    answer = window.page.goto(f"http://rebound.test:{urlsplit(site).port}/")
    assert answer is not None
    assert answer.status == 403
    assert "recorded" not in window.page.content()
    assert "recorded" not in attempt(window, f"http://rebound.test:{urlsplit(site).port}/", "fetch")


def test_a_link_from_elsewhere_may_be_followed(site: str, stranger: Watched) -> None:
    stranger.page.evaluate("url => { location.href = url }", f"{site}/")
    stranger.page.wait_for_url(f"{site}/")
    assert stranger.page.locator("h1").inner_text() == "Runs"
