"""The tests' own eyes: a window that is clean is so called, and whatever goes wrong in one is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route
from tests.browser.serving import served
from tests.browser.watching import Watched

PAGES = {
    "good": "<title>good</title><link rel='icon' href='data:,'><p>hello</p><script>window.ran = 1</script>",
    "throws": "<link rel='icon' href='data:,'><script>throw new Error('oh')</script>",
    "logs": "<link rel='icon' href='data:,'><script>console.error('oh')</script>",
    "asks": "<link rel='icon' href='data:,'><script src='/missing.js'></script>",
    "leaves": "<link rel='icon' href='data:,'><img src='http://192.0.2.1:9/a.png'>",
    "wide": "<link rel='icon' href='data:,'><div style='width: 900px'>wide</div>",
    "boxed": "<link rel='icon' href='data:,'><div style='overflow: auto'><p style='width: 900px'>wide</p></div>",
}


async def _page(request: Request) -> HTMLResponse:
    return HTMLResponse("<!doctype html>" + PAGES[request.path_params["name"]])


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    with served(Starlette(routes=[Route("/{name:str}", _page)])) as url:
        yield url


def test_a_page_is_seen_to_run_and_to_be_clean(pages: str, watch: Callable[..., Watched]) -> None:
    window = watch()
    window.page.goto(f"{pages}/good")
    assert window.page.title() == "good"
    assert window.page.evaluate("window.ran") == 1
    assert window.requested == [f"{pages}/good"]
    window.assert_clean()


@pytest.mark.parametrize(("name", "problem"), [("throws", "uncaught.*oh"), ("logs", "console error.*oh")])
def test_errors_of_scripts_are_seen(name: str, problem: str, pages: str, watch: Callable[..., Watched]) -> None:
    window = watch()
    window.page.goto(f"{pages}/{name}")
    with pytest.raises(AssertionError, match=problem):
        window.assert_clean()
    window.expect(problem)


def test_a_request_that_leaves_this_machine_is_seen(pages: str, watch: Callable[..., Watched]) -> None:
    window = watch()
    window.page.context.route("http://192.0.2.1:9/**", lambda route: route.abort("addressunreachable"))
    window.page.goto(f"{pages}/leaves")
    assert window.strangers == ["http://192.0.2.1:9/a.png"]
    window.expect("192.0.2.1")
    window.requested.clear()


def test_what_is_wider_than_a_phone_is_seen(pages: str, watch: Callable[..., Watched]) -> None:
    window = watch(width=390, height=844)
    window.page.goto(f"{pages}/wide")
    assert any("wide" in each for each in window.sideways())
    window.page.goto(f"{pages}/boxed")
    assert window.sideways() == []
