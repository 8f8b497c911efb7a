"""Building local folders without leaving anything in them.

A build leaves ``build`` and ``*.egg-info`` where the code is, and such leftovers later hide the entry points of what
is installed. So what is not editable is built from a copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentrl.environments.sources import Source

__all__ = ["copied", "tidied"]

_ANYWHERE = shutil.ignore_patterns(
    ".git", ".hg", ".tox", ".nox", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)
_AT_THE_TOP = frozenset({"build", "dist", "runs"})


def copied(sources: Iterable[Source], into: Path) -> list[str]:
    """What pip is given for ``sources``: copies below ``into`` for folders. Raises ``OSError``."""
    return [
        _copy(source.folder, into / str(index)) if source.folder else source.text
        for index, source in enumerate(sources)
    ]


@contextmanager
def tidied(sources: Iterable[Source]) -> Iterator[list[str]]:
    """What pip is given for ``sources`` with folders editable; a build's leftovers go when the block ends."""
    sources = list(sources)
    before = {path for source in sources for path in _leftovers(source)}
    try:
        yield [argument for source in sources for argument in (["-e", source.text] if source.folder else [source.text])]
    finally:
        for path in {path for source in sources for path in _leftovers(source)} - before:
            shutil.rmtree(path, ignore_errors=True)


def _copy(folder: Path, target: Path) -> str:
    def ignored(directory: str, names: list[str]) -> set[str]:
        here = Path(directory)
        skipped = {name for name in names if (here / name / "pyvenv.cfg").is_file()}
        if here == folder:
            # A folder of one of these names may also be a package.
            skipped |= {name for name in _AT_THE_TOP & set(names) if not (here / name / "__init__.py").is_file()}
        return skipped | _ANYWHERE(directory, names)

    shutil.copytree(folder, target, ignore=ignored, ignore_dangling_symlinks=True)
    return str(target)


def _leftovers(source: Source) -> list[Path]:
    if source.folder is None:
        return []
    return [path for pattern in ("build", "*.egg-info", "*/*.egg-info") for path in source.folder.glob(pattern)]
