"""Which HTTP clients the installed openai package takes, and clients that many agents share."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from functools import lru_cache
from types import ModuleType

__all__ = ["Unclosable", "UnclosableSync", "client_library"]


@lru_cache(1)
def client_library() -> ModuleType:
    """The HTTP library whose clients the installed openai package takes: ``httpx2`` since its version 3.

    Read from the package's metadata, which is quicker than importing it.
    """
    try:
        requirements = importlib.metadata.requires("openai") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    second = any(re.match(r"httpx2\b", each) and "extra ==" not in each for each in requirements)
    return importlib.import_module("httpx2" if second else "httpx")


class Unclosable:
    """Goes before an async client class: whoever closes it, or leaves ``async with``, harms nobody else."""

    async def aclose(self) -> None:
        """Nothing: the client is shared."""

    async def __aenter__(self) -> Unclosable:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Nothing: the client is shared."""


class UnclosableSync:
    """The same for a client class that is not async."""

    def close(self) -> None:
        """Nothing: the client is shared."""

    def __enter__(self) -> UnclosableSync:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing: the client is shared."""
