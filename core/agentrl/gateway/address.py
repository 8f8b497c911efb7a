"""The address of a gateway: where it listens, how clients are told to reach it, and with which certificate."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from agentrl.config.models import GatewaySection
from agentrl.errors import ConfigError, one_line, shown
from agentrl.hosting.contract import Hosts

__all__ = ["Address"]

_LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  (it is the user who chooses it)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """Where a gateway listens on this machine, and what its clients are told."""

    host: str = _LOOPBACK
    port: int = 0
    """0 is a free one."""
    name: str | None = None
    """What stands for ``host`` in the URL that clients are given; ``None`` for ``host`` itself, and for 127.0.0.1 where
    that is all addresses of the machine."""
    url: str | None = None
    """Where clients reach the gateway, if that is not at host and port: behind a proxy, or in a container."""
    certificate: Path | None = None
    """A file in PEM format with the certificate, and the chain that leads to it; with one the gateway speaks TLS."""
    certificate_key: Path | None = None
    """A file in PEM format with the private key; ``None`` where the certificate's file holds it too."""

    @classmethod
    def of(cls, section: GatewaySection, hosts: Hosts | None = None) -> Address:
        """That of a run's gateway, as the ``section`` of its configuration says.

        Where the scheduler's ``hosts`` may be on other machines and nothing else is said, it is the one at which these
        reach this machine. Raises ``ConfigError`` as ``check`` does.
        """
        elsewhere = hosts.address if hosts is not None and hosts.elsewhere else None
        host = section.host or elsewhere or _LOOPBACK
        address = cls(
            host=host,
            port=section.port,
            name=elsewhere if section.host is None or host in _EVERYWHERE else None,
            url=section.url,
            certificate=section.certificate,
            certificate_key=section.certificate_key,
        )
        address.check("gateway")
        return address

    @property
    def scheme(self) -> str:
        """What the URLs of its clients begin with."""
        return "http" if self.certificate is None else "https"

    @cached_property
    def is_loopback(self) -> bool:
        """Whether only clients of this machine reach it, as far as that can be told."""
        if self.url is not None:
            return False
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return all(ipaddress.ip_address(each[4][0]).is_loopback for each in found)

    def check(self, section: str) -> None:
        """Raise ``ConfigError``, with the keys of ``section``, for a URL that leads nowhere or files of no use."""
        if self.url is not None:
            given = urlsplit(self.url)
            if not _has_port_or_none(self.url) or (
                given.scheme not in _PORTS or not given.hostname or given.query or given.fragment
            ):
                raise ConfigError(
                    f"{section}.url={shown(self.url, 80)} is not where clients can reach the "
                    f"{'service' if section == 'serve' else 'gateway'}",
                    fix="write it like https://example.com/agentrl",
                    key=f"{section}.url",
                )
        self.tls()

    def url_at(self, listener: socket.socket) -> str:
        """Where clients reach the gateway that listens at ``listener``; without a slash at its end."""
        if self.url is not None:
            return _normal(self.url)
        host, port = listener.getsockname()[:2]
        address = ipaddress.ip_address(host)
        named = self.name or self.host
        if self.name is None and (address.is_unspecified or _is_address(named)):
            unspecified = "127.0.0.1" if address.version == 4 else "::1"
            named = unspecified if address.is_unspecified else str(address)
        return f"{self.scheme}://{f'[{named}]' if ':' in named else named}:{port}"

    def tls(self) -> ssl.SSLContext | None:
        """What the server's connections are encrypted with; ``None`` without a certificate.

        Raises ``ConfigError`` for files that cannot be read or do not fit each other.
        """
        if self.certificate is None:
            if self.certificate_key is not None:
                raise ConfigError(
                    "gateway.certificate_key is set, and gateway.certificate is not",
                    fix="name the certificate too, or neither",
                    key="gateway.certificate",
                )
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate.expanduser(), _expanded(self.certificate_key), _no_password)
        except (OSError, ValueError) as error:
            named = " and ".join(str(each) for each in (self.certificate, self.certificate_key) if each is not None)
            raise ConfigError(
                f"gateway.certificate: {named} give no certificate with its key: {one_line(error)}",
                fix="name files in PEM format: the certificate with its chain, and its private key without a password",
                key="gateway.certificate",
            ) from error
        return context


def _has_port_or_none(url: str) -> bool:
    try:
        urlsplit(url).port  # noqa: B018  (reading it checks it)
    except ValueError:
        return False
    return True


def _no_password() -> bytes:
    """Asked for where a key is encrypted; without it OpenSSL would ask on the terminal."""
    raise ValueError("the private key has a password")


def _expanded(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _normal(url: str) -> str:
    """``url`` as HTTP clients write it: without the port that its scheme has anyway, and no slash at the end."""
    given = urlsplit(url)
    host = given.hostname or ""
    port = "" if given.port in (None, _PORTS.get(given.scheme)) else f":{given.port}"
    return f"{given.scheme}://{f'[{host}]' if ':' in host else host}{port}{given.path.rstrip('/')}"
