"""Sessions that this process serves over HTTP: where and to whom, with which limits, and until when."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentrl.config.models import GatewaySection, ServeSection
from agentrl.environ import ADMIN_KEY
from agentrl.errors import AgentRLError, ConfigError
from agentrl.gateway import Gateway, Session
from agentrl.gateway.address import Address
from agentrl.gateway.connection import DEFAULT_LIMITS, ConnectionLimits
from agentrl.gateway.gateway import BODY_LIMIT
from agentrl.gateway.service import ServiceLimits, SessionService

__all__ = ["Ready", "ServiceOptions", "check_address", "expiring", "served", "service_url", "session_url"]

_SHORTEST_KEY = 16
"""Fewest characters of the admin key where other machines may try keys."""
_LOOKS_S = 1.0
"""Most seconds between two looks for sessions that have expired."""
_KIB = 2**10
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Where and to whom a model is served, and the limits."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 is a free one."""
    url: str | None = None
    """Where clients reach the service, if that is not at host and port: behind a proxy, or in a container."""
    admin_key: str | None = field(default=None, repr=False)
    """``None`` makes one, on the loopback interface only."""
    sessions: ServiceLimits = field(default_factory=ServiceLimits)
    waiting: int = 256
    """Most calls that wait for the model."""
    body_limit: int = BODY_LIMIT
    connections: ConnectionLimits = DEFAULT_LIMITS
    certificate: Path | None = None
    """See ``Address``."""
    certificate_key: Path | None = None

    @classmethod
    def of(cls, section: ServeSection, admin_key: str | None = None) -> ServiceOptions:
        """Those of a configuration's section; the admin key is by default that of the environment, if it has one."""
        return cls(
            host=section.host,
            port=section.port,
            url=section.url,
            admin_key=admin_key or os.environ.get(ADMIN_KEY) or None,
            sessions=ServiceLimits(sessions=section.max_sessions, idle_s=section.idle),
            waiting=section.max_waiting,
            body_limit=int(section.max_body * _MIB),
            connections=ConnectionLimits(
                header_s=section.header_timeout,
                body_s=section.body_timeout,
                header_bytes=section.max_header * _KIB,
            ),
        )

    def encrypted(self, section: GatewaySection) -> ServiceOptions:
        """These, with the certificate that the configuration's section of the gateway names."""
        return replace(self, certificate=section.certificate, certificate_key=section.certificate_key)

    @property
    def address(self) -> Address:
        """Where the gateway listens. Which URL a session's client is given is for ``session_url``."""
        return Address(
            self.host,
            self.port,
            url=self.url,
            certificate=self.certificate,
            certificate_key=self.certificate_key,
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """A service that clients can reach."""

    url: str
    """What the paths of the API follow, such as ``/v1/sessions``."""
    model: str
    folder: Path
    """The run folder."""
    admin_key: str | None = field(default=None, repr=False)
    """The admin key, where one was made; whoever starts the service is told it once."""


def check_address(options: ServiceOptions) -> None:
    """Raise ``ConfigError`` where other machines could open sessions without a key that is hard to guess.

    Also for a ``url`` that leads nowhere, and for a certificate of no use.
    """
    options.address.check("serve")
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"serve.host={options.host} is no address: {error.strerror or error}") from error
    if all(ipaddress.ip_address(each[4][0]).is_loopback for each in found):
        return
    if options.admin_key is None:
        raise ConfigError(
            f"serve.host={options.host} lets other machines in, and nobody has set an admin key",
            fix="set AGENTRL_ADMIN_KEY, or serve on 127.0.0.1",
        )
    if len(options.admin_key) < _SHORTEST_KEY:
        raise ConfigError(
            f"serve.host={options.host} lets other machines in, and the admin key has {len(options.admin_key)} "
            "characters",
            fix=f"take one of at least {_SHORTEST_KEY}: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )


@contextlib.asynccontextmanager
async def served(gateway: Gateway, service: SessionService) -> AsyncIterator[None]:
    """Serve ``service`` within the block; at its end the sessions that are open end and are stored."""
    gateway.attach(service)
    gateway.start()
    try:
        yield
    finally:
        try:
            await asyncio.shield(service.stop())
        finally:
            gateway.stop()
            await asyncio.sleep(0)  # In which the last episodes are reported.


async def expiring(
    service: SessionService, limits: ServiceLimits, warn: Callable[[str], None], look: Callable[[], None]
) -> None:
    """End idle sessions for ever, and call ``look`` now and then.

    A session whose episode cannot be stored is told of with ``warn``, and tried again.
    """
    pause = min(_LOOKS_S, limits.idle_s / 4)
    while True:
        await asyncio.sleep(pause)
        look()
        try:
            await service.expire()
        except AgentRLError as error:
            warn(str(error))


def service_url(options: ServiceOptions, gateway: Gateway) -> str:
    """What the paths of the API follow."""
    return (options.url or gateway.url).rstrip("/")


def session_url(options: ServiceOptions, gateway: Gateway, session: Session, host: str) -> str:
    """The base URL of a session: at the service's own URL, or at the host that its opener asked."""
    if options.url is not None:
        return session.base_url.replace(gateway.url, options.url.rstrip("/"), 1)
    return session.base_url.replace(gateway.url, f"{options.address.scheme}://{host}", 1) if host else session.base_url
