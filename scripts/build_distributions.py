"""Build the wheel and the source archive of core and of every plugin.

``python scripts/build_distributions.py [FOLDER]`` writes them to FOLDER, by default ``dist``, which is emptied first.
Each distribution is built from a copy, so that a build leaves nothing in the checkout. Links of a README to other files
of the checkout would lead nowhere on the page of a package index: in the copy, such a link becomes its text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
CORE = ("pyproject.toml", "README.md", "LICENSE", "core", "agents")
LEFT_BY_TOOLS = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)[^)]*\)")


def main(target: Path) -> int:
    """Build everything into ``target``; returns the exit code."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as room:
        for source in sources(Path(room)):
            print(f"building {source.name}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
            built = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if built.returncode:
                print(built.stdout + built.stderr, file=sys.stderr)
                return built.returncode
    for file in sorted(target.iterdir()):
        print(file)
    return 0


def sources(room: Path) -> Iterator[Path]:
    """A copy in ``room`` of each distribution's source, as it is published."""
    core = room / "agentrl-core"
    core.mkdir()
    for name in CORE:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, core / name, ignore=LEFT_BY_TOOLS)
        else:
            shutil.copyfile(path, core / name)
    yield _as_published(core)
    for plugin in sorted((CHECKOUT / "plugins").iterdir()):
        if (plugin / "pyproject.toml").exists():
            shutil.copytree(plugin, room / plugin.name, ignore=LEFT_BY_TOOLS)
            yield _as_published(room / plugin.name)


def _as_published(source: Path) -> Path:
    readme = source / "README.md"
    readme.write_text(without_relative_links(readme.read_text(encoding="utf-8")), encoding="utf-8")
    return source


def without_relative_links(text: str) -> str:
    """``text``, in Markdown, with links to files of the checkout replaced by their text, and without such images."""
    return LINK.sub(lambda link: "" if link[1] else link[2], text)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else CHECKOUT / "dist").resolve()))
