"""Who may read the pages: every header of every answer, and every refusal."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from agentrl.errors import ConfigError
from agentrl.view.app import view_app
from agentrl.view.library import Library
from agentrl.view.security import HEADERS, Guard, is_loopback, new_token, own_hosts
from agentrl.view.server import check_exposure

TOKEN = "correct-horse-battery-staple"
COOKIE = "agentrl-view-1"


def client(host: str = "127.0.0.1", token: str | None = None) -> TestClient:
    guard = Guard(PlainTextResponse("the page"), own_hosts(host), token, COOKIE)
    return TestClient(guard, base_url="http://127.0.0.1:8000", follow_redirects=False)


ASKING = client("0.0.0.0", TOKEN)


@pytest.mark.parametrize(
    ("method", "headers", "status", "said"),
    [
        ("GET", {}, 200, "the page"),
        ("HEAD", {}, 200, ""),
        ("GET", {"host": "localhost"}, 200, ""),
        ("GET", {"host": "LOCALHOST:9000"}, 200, ""),
        ("GET", {"host": "127.0.0.1:1"}, 200, ""),
        ("GET", {"host": "[::1]:8000"}, 200, ""),
        ("POST", {}, 405, "only be read"),
        ("PUT", {}, 405, "only be read"),
        ("PATCH", {}, 405, "only be read"),
        ("DELETE", {}, 405, "only be read"),
        ("OPTIONS", {"origin": "http://evil.example", "access-control-request-method": "GET"}, 405, "only be read"),
        ("GET", {"host": "evil.example"}, 403, "does not go by the name"),
        ("GET", {"host": "evil.example:8000"}, 403, "does not go by the name"),
        ("GET", {"host": "127.0.0.1.evil.example"}, 403, "does not go by the name"),
        ("GET", {"host": "localhost.evil.example"}, 403, "does not go by the name"),
        ("GET", {"host": "192.168.1.5"}, 403, "does not go by the name"),
        ("GET", {"host": ""}, 400, "Host"),
        ("GET", {"host": "localhost@evil.example"}, 400, "Host"),
        ("GET", {"host": "[::1"}, 400, "Host"),
        ("GET", {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200, ""),
        ("GET", {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, 200, ""),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200, ""),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403, ""),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, 403, "another site"),
        ("GET", {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403, "another site"),
        ("GET", {"sec-fetch-site": "cross-site"}, 403, "another site"),
    ],
)
def test_what_is_answered_and_what_is_refused(method: str, headers: dict[str, str], status: int, said: str):
    answer = client().request(method, "/", headers=headers)
    assert answer.status_code == status
    assert said in answer.text
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    assert answer.headers["cache-control"] == "no-store"
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_no_script_style_or_file_of_elsewhere_is_allowed():
    policy = dict(each.split(" ", 1) for each in HEADERS["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    nothing = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    assert policy["style-src"] == f"'self' 'sha256-{nothing}'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    allowed = {source for name, sources in policy.items() if name != "style-src" for source in sources.split()}
    assert allowed <= {"'none'", "'self'", "data:", "blob:"}


@pytest.mark.parametrize("path", ["/", "/runs/none", "/nowhere", "/assets/view.css", "/runs/none/curves.json"])
def test_every_page_has_the_headers_also_one_that_there_is_not(tmp_path: Path, path: str):
    answer = TestClient(view_app(Library([tmp_path])), base_url="http://localhost").get(path)
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    assert answer.headers.get_list("content-security-policy") == [HEADERS["content-security-policy"]]
    assert answer.headers["cache-control"] in ("no-store", "no-cache")


def test_a_page_that_fails_has_the_headers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agentrl.view.frame.tag_of", lambda *_: 1 / 0)
    app = view_app(Library([tmp_path]))
    answer = TestClient(app, base_url="http://localhost", raise_server_exceptions=False).get("/")
    assert answer.status_code == 500
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)


def test_the_token_is_taken_from_the_address_once_and_from_then_on_a_cookie_stands_for_it():
    browser = client("0.0.0.0", TOKEN)
    assert browser.get("/runs/a?step=3").status_code == 401
    first = browser.get(f"/runs/a?step=3&token={TOKEN}&b=%26")
    assert (first.status_code, first.headers["location"]) == (303, "/runs/a?step=3&b=%26")
    cookie = first.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie + first.text + first.headers["location"]
    assert browser.get("/runs/a?step=3").text == "the page"
    assert browser.get("/runs/a?token=another").status_code == 401, "a wrong token is said, whatever the cookie"


@pytest.mark.parametrize("path", ["//evil.example/x", "/%2F/evil.example", "///evil.example"])
def test_the_redirect_without_the_token_stays_on_this_server(path: str):
    location = client("0.0.0.0", TOKEN).get(f"http://127.0.0.1:8000{path}?token={TOKEN}").headers["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


def test_the_redirect_of_a_client_that_sends_backslashes_stays_on_this_server():
    answers = []

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/\\evil.example",
        "raw_path": b"/\\evil.example",
        "query_string": f"token={TOKEN}".encode(),
        "headers": [(b"host", b"127.0.0.1")],
    }
    asyncio.run(Guard(PlainTextResponse("the page"), own_hosts("0.0.0.0"), TOKEN, COOKIE)(scope, no_body, send))
    assert dict(answers[0]["headers"])[b"location"] == b"/evil.example"


async def no_body() -> Any:
    raise AssertionError("nothing is read of a request")


@pytest.mark.parametrize("other", ["x y", '{"a": 1}', 'a="', "=", "ü=1", "a=[1]"])
def test_cookies_of_other_servers_of_the_machine_do_no_harm(other: str):
    own = client("0.0.0.0", TOKEN).get(f"/?token={TOKEN}").headers["set-cookie"].partition(";")[0]
    for header in (f"{other}; {own}", f"{own}; {other}", f"{COOKIE}=old; {other}; {own}"):
        assert client("0.0.0.0", TOKEN).get("/", headers={"cookie": header.encode()}).text == "the page"


@pytest.mark.parametrize(
    "cookie",
    ["", "x", TOKEN, "0" * 64, "ü"],
)
def test_another_cookie_is_none(cookie: str):
    browser = client("0.0.0.0", TOKEN)
    answer = browser.get("/", headers={"cookie": f"{COOKIE}={cookie}".encode()})
    assert answer.status_code == 401
    assert TOKEN not in answer.text


@settings(max_examples=30)
@given(st.text(max_size=40) | st.integers(0, len(TOKEN) - 1).map(TOKEN.__getitem__))
def test_no_other_token_is_taken(token: str):
    assert ASKING.get("/", params={"token": token}).status_code == 401


@pytest.mark.parametrize(
    ("bound", "asked", "is_answered"),
    [
        ("0.0.0.0", "192.168.1.5:8000", True),
        ("0.0.0.0", "[fe80::1]:8000", True),
        ("0.0.0.0", "localhost", True),
        ("0.0.0.0", "evil.example", False),
        ("box.example", "box.example:1", True),
        ("box.example", "BOX.example", True),
        ("box.example", "evil.example", False),
        ("127.0.0.1", "192.168.1.5", False),
        ("::1", "[::1]", True),
        ("127.0.0.2", "127.0.0.2", True),
    ],
)
def test_which_names_a_server_goes_by(bound: str, asked: str, is_answered: bool):
    assert (client(bound).get("/", headers={"host": asked}).status_code == 200) is is_answered


@pytest.mark.parametrize(
    ("host", "token", "said"),
    [
        ("0.0.0.0", None, "--token auto"),
        ("::", None, "--token auto"),
        ("192.168.1.5", None, "--token auto"),
        ("box.example", None, "ssh -L"),
        ("localhost.example", None, "--token auto"),
        ("0.0.0.0", "short", "at least 16"),
        ("127.0.0.1", "short", "at least 16"),
        ("0.0.0.0", "with a line\nbreak in it", "printable"),
    ],
)
def test_an_address_that_others_reach_asks_for_a_token_that_nobody_guesses(host: str, token: str | None, said: str):
    with pytest.raises(ConfigError) as caught:
        check_exposure(host, token)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_asks_for_none(host: str):
    assert is_loopback(host)
    check_exposure(host, None)
    check_exposure(host, new_token())


def test_a_token_is_made_anew_each_time_and_fits_into_an_address():
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) == 43 and each.replace("-", "").replace("_", "").isalnum() for each in made)


def test_no_token_is_logged(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, "agentrl")
    caplog.set_level(logging.DEBUG, "starlette")
    browser = client("0.0.0.0", TOKEN)
    browser.get(f"/?token={TOKEN}")
    browser.get("/")
    assert TOKEN not in "".join(record.getMessage() for record in caplog.records if record.name != "httpx")
