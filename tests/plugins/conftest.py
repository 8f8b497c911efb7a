"""A folder on ``sys.path`` that tests install distributions into, and modules that are forgotten afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty site-packages folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    modules, path = set(sys.modules), list(sys.path)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("AGENTRL_DISABLE_PLUGINS", raising=False)
    yield folder
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
