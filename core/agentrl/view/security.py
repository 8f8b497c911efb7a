"""Who may read the pages: the check of every request before any page sees it, and the headers of every answer.

The pages show what agents and models have written, so nobody but the user may read them, and nothing in them may run:

- Only ``GET`` and ``HEAD`` are answered. Nothing here can be changed.
- The ``Host`` of a request has to be one of this server's own names, or a web site whose name is made to point at this
  machine (DNS rebinding) could read everything.
- A request that the page of another site sends is refused where the browser says so, and no header allows such a page
  to read an answer (CORS).
- With a token, a request needs it: once in the URL, which is answered by a cookie and a redirect to the same address
  without it, and from then on the cookie.
- A Content-Security-Policy lets the browser run and load only files of this server.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["EMPTY_STYLE", "HEADERS", "Guard", "is_loopback", "new_token", "own_hosts"]

EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""A style element without text, which plotly fills by its own script: the digest is that of nothing."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            f"style-src 'self' {EMPTY_STYLE}",
            "img-src 'self' data: blob:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer. One that does not say how long it may be kept is not kept at all."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s/@]+)(?::\d{1,5})?")
_TOKEN = "token"  # noqa: S105 - The name of a field of the URL, not its value.
_YEAR = 365 * 24 * 3600


def new_token() -> str:
    """A token that nobody can guess: 256 random bits as 43 characters that fit into a URL."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach a server that is bound to ``host``, an address or a name."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_hosts(host: str) -> Callable[[str], bool]:
    """Tells which names of a ``Host`` header mean a server that is bound to ``host``.

    On loopback they are ``localhost`` and loopback addresses, with any port, so that a port that ssh forwards works.
    Elsewhere they are also ``host``, the names of this machine, and all addresses: a site that is made to point here
    (DNS rebinding) is known by its name, which an address cannot be.
    """
    if is_loopback(host):
        return is_loopback
    names = {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return lambda name: name.lower() in names or is_loopback(name) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Stands before the application ``app``: refuses what may not be answered, and adds ``HEADERS`` to what is.

    ``is_own`` tells whether the name or address of a ``Host`` header, without its port, is the server's own. Without a
    ``token`` none is asked for. ``cookie`` is the name of the cookie that stands for it: two servers on one machine,
    which share their cookies, need two names.
    """

    def __init__(self, app: ASGIApp, is_own: Callable[[str], bool], token: str | None = None, cookie: str = "") -> None:
        self._app = app
        self._is_own = is_own
        self._token = None if token is None else token.encode()
        self._cookie = cookie or "agentrl-view"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        with_headers = _adding(send)
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, with_headers)
            return
        status, headers, text = refusal
        body = text.encode()
        headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body))} | headers
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await with_headers({"type": "http.response.start", "status": status, "headers": raw})
        await with_headers({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _refusal(self, scope: Scope) -> tuple[int, dict[str, str], str] | None:
        """The status, headers and text of the answer to a request that no page may answer, else ``None``."""
        if scope["method"] not in ("GET", "HEAD"):
            return 405, {"allow": "GET, HEAD"}, f"{scope['method']} is refused: these pages can only be read\n"
        hosts = _values(scope, b"host")
        named = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if named is None:
            return 400, {}, "the request does not say in one Host header which server it means\n"
        if not self._is_own(named[1].strip("[]")):
            return 403, {}, "this server does not go by the name in the request's Host header; open it by its address\n"
        if _is_from_elsewhere(scope):
            return 403, {}, "another site's page sent this request; it may not read what is here\n"
        return None if self._token is None else self._without_token(scope, self._token)

    def _without_token(self, scope: Scope, token: bytes) -> tuple[int, dict[str, str], str] | None:
        fields = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in fields if name == _TOKEN]
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        if given and hmac.compare_digest(given[0].encode(), token):
            rest = urlencode([field for field in fields if field[0] != _TOKEN])
            # Two slashes at its beginning, of either kind, would make the address that of another server.
            location = "/" + path.lstrip("/\\") + (f"?{rest}" if rest else "")
            cookie = f"{self._cookie}={_stand_in(token)}; Path=/; Max-Age={_YEAR}; HttpOnly; SameSite=Strict"
            return 303, {"location": location, "set-cookie": cookie}, "go on without the token in the address\n"
        if not given and any(hmac.compare_digest(each, _stand_in(token).encode()) for each in self._cookies(scope)):
            return None
        wrong = "the token in the address is not this server's" if given else "this server asks for its token"
        return 401, {}, f"{wrong}: open the address that `agentrl view` printed, with ?token=… at its end\n"

    def _cookies(self, scope: Scope) -> list[bytes]:
        # Not by http.cookies: it gives up at the first that it cannot read, and all servers of a machine, whatever they
        # call theirs, share one header.
        pairs = (each.partition("=") for header in _values(scope, b"cookie") for each in header.split(";"))
        return [value.strip().encode() for name, _, value in pairs if name.strip() == self._cookie]


def _stand_in(token: bytes) -> str:
    """What the cookie holds: it proves that the token was known, and does not tell it."""
    return hmac.new(token, b"agentrl view", hashlib.sha256).hexdigest()


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _is_from_elsewhere(scope: Scope) -> bool:
    """Whether a browser says that another site's page sent the request, and not a user who followed a link in it."""
    sites = _values(scope, b"sec-fetch-site")
    if not sites or sites[0] in ("same-origin", "none"):
        return False
    return _values(scope, b"sec-fetch-mode") != ["navigate"] or _values(scope, b"sec-fetch-dest") != ["document"]


def _adding(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            added = HEADERS if b"cache-control" in given else {**HEADERS, "cache-control": "no-store"}
            message["headers"] = [
                *message["headers"],
                *((key.encode(), value.encode()) for key, value in added.items()),
            ]
        await send(message)

    return with_headers
