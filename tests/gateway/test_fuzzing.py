"""Requests made from the OpenAPI document, valid and broken ones, to everything that is served; see ``fuzzing``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from tests.gateway.fuzzing import ADMIN, OPERATIONS, Target, fuzz, target

EXAMPLES = 6
ENDS = ("POST", "/sessions/{id}/close")
"""Ends the session that the other operations are about."""
BREAKABLE = [
    *((method, path) for method, path in OPERATIONS if method == "POST" and not path.endswith("/cancel")),
    ("GET", "/responses/{response}"),
    ("GET", "/responses/{response}/input_items"),
]
"""Operations with a body, or with a query. Any text is a valid name in a path."""


@pytest.fixture(scope="module")
def served() -> Iterator[Target]:
    with target() as each:
        yield each


@pytest.mark.parametrize("known", [False, True], ids=["any", "known"])
@pytest.mark.parametrize(("method", "path"), [each for each in OPERATIONS if each != ENDS])
def test_what_the_document_allows_is_answered_as_it_says(served, method, path, known):
    fuzz(served, method, path, broken=False, known=known, examples=EXAMPLES)


@pytest.mark.parametrize(("method", "path"), [each for each in BREAKABLE if each != ENDS])
def test_what_the_document_forbids_is_refused_and_leaves_no_trace(served, method, path):
    fuzz(served, method, path, broken=True, known=True, examples=EXAMPLES)


FOUND = {
    "/chat/completions": {
        "messages": [{"role": "user", "content": "Hi"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": {}}]},
    },
}
"""By path, what fuzzing has once found to be answered with a 5xx."""


@pytest.mark.parametrize("path", FOUND)
def test_what_was_found_once_is_refused(served, path):
    key = {"x-api-key": served.session.api_key}
    response = requests.post(f"{served.gateway.url}/v1{path}", json=FOUND[path], headers=key, timeout=60)
    assert response.status_code == 400, response.text


def test_sessions_are_closed_as_the_document_says():
    with target() as alone:
        for broken in (True, False):
            fuzz(alone, *ENDS, broken=broken, known=True, examples=EXAMPLES)
        assert len(alone.stored) == 1


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_without_credentials_nothing_is_told(served, method, path):
    before = served.trace()
    url = f"{served.gateway.url}/v1{path}".replace("{id}", served.session.id).replace("{", "").replace("}", "")
    for headers in ({}, {"authorization": "Bearer nobody"}, {"x-api-key": ADMIN[:-1]}):
        response = requests.request(method, url, json={}, headers=headers, timeout=60)
        assert response.status_code == 401, response.text
        assert served.session.api_key not in response.text
    assert served.trace() == before
