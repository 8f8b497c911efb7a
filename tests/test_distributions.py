"""What a package index would get: a wheel of core and of every plugin, and pages whose links lead somewhere."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``make dist`` fills: the one that it has just filled, where ``make test`` names it."""
    if made := os.environ.get("TEST_DISTRIBUTIONS"):
        return ROOT / made
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, ROOT / "scripts/build_distributions.py", folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


def files_of(dist: Path, name: str) -> dict[str, bytes]:
    (wheel,) = dist.glob(f"{name.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {member: archive.read(member) for member in archive.namelist()}


def page_of(dist: Path, name: str) -> str:
    """The page that an index makes of a distribution, in Markdown."""
    files = files_of(dist, name)
    (metadata,) = (text for member, text in files.items() if member.endswith(".dist-info/METADATA"))
    message = email.message_from_bytes(metadata)
    assert message["Description-Content-Type"].startswith("text/markdown")
    return str(message.get_payload())


@pytest.mark.parametrize("name", ["agentrl-core", *PLUGINS])
def test_a_page_has_no_link_that_leads_nowhere(dist: Path, name: str):
    page = page_of(dist, name)
    assert page.lstrip().startswith("# ")
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", page)
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in page.splitlines()}
    lost = [each for each in targets if not each.startswith("https://") and each.removeprefix("#") not in headings]
    assert lost == []


@pytest.mark.parametrize("name", ["agentrl-core", *PLUGINS])
def test_a_source_archive_goes_with_every_wheel(dist: Path, name: str):
    assert len(list(dist.glob(f"{name.replace('-', '_')}-*.tar.gz"))) == 1


def test_the_wheel_of_core_holds_every_module_and_file_of_it(dist: Path):
    held = set(files_of(dist, "agentrl-core"))
    listed = subprocess.run(
        ["git", "ls-files", "core", "agents"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = {name.split("/", 1)[1] for name in listed if name.count("/") > 1}
    assert wanted - held == {"agentrl/scaffold/templates/ruff.toml"}  # For the linter of this checkout alone.


def test_building_leaves_nothing_in_the_checkout(dist: Path):
    for plugin in PLUGINS:
        left = [path for path in (ROOT / "plugins" / plugin).rglob("*") if path.suffix == ".egg-info"]
        assert left == []
    assert os.listdir(dist)
