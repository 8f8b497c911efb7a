"""What a base install leaves out: packages that core itself uses, and that its extras bring.

They are imported where they are used. One that is not there is a ``MissingExtra`` with the command that installs it,
whichever import found out: ``missing_extra`` tells such an import from everybody else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import TracebackType

from agentrl.errors import PluginError

__all__ = ["MissingExtra", "missing_extra", "missing_extras", "require"]

_CORE = "agentrl-core"
_OURS = ("agentrl", "agentrl_agents")
_WHERE_TRAINING_IS = "train"
"""The extra of packages that nobody declares, because those of this one bring them."""

_PROJECTS = {"markdown_it": "markdown-it-py"}
"""The distributions whose names are not those of their packages, as far as an extra other than that one has them."""

_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_PROJECT = re.compile(r"[A-Za-z0-9._-]+")


class MissingExtra(PluginError, ImportError):
    """A package that an extra of agentrl-core brings is not installed."""

    def __init__(self, module: str, extra: str | None = None) -> None:
        """``extra`` is what brings it, by default the first of the extras that do."""
        extra = extra or _extra_of(module)
        bringing = _CORE if extra is None else f"{_CORE}[{extra}]"
        super().__init__(f"{module} is not installed: it comes with {bringing}", fix=f"pip install '{bringing}'")


def require(module: str, extra: str | None = None) -> None:
    """Raise ``MissingExtra`` where the package ``module`` is not installed; nothing is imported.

    ``extra`` is the one to install for what is wanted here, where several bring the package.
    """
    if find_spec(module) is None:
        raise MissingExtra(module, extra)


def missing_extra(error: BaseException | None) -> MissingExtra | None:
    """``error`` as what it means, where it, or what caused it, is core's own import of a package that is not here."""
    while error is not None:
        if isinstance(error, MissingExtra):
            return error
        if isinstance(error, ModuleNotFoundError) and error.name and _is_ours(error.__traceback__):
            module = error.name.partition(".")[0]
            return None if module in _OURS else MissingExtra(module)
        error = error.__cause__
    return None


@contextmanager
def missing_extras() -> Iterator[None]:
    """Within it, imports that fail for want of an extra raise ``MissingExtra``."""
    try:
        yield
    except ImportError as error:
        missing = missing_extra(error)
        if missing is None or missing is error:
            raise
        raise missing from error


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether the innermost code that ran, the import statement's machinery aside, is core's.

    ``importlib.import_module`` is not aside: what core imports by a name, others have named.
    """
    module = ""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        module = module if name.startswith("importlib.") else name
        trace = trace.tb_next
    return module.partition(".")[0] in _OURS


def _extra_of(module: str) -> str | None:
    """The extra that brings ``module``; ``None`` where core itself does."""
    from importlib import metadata

    project = _PROJECTS.get(module, module.replace("_", "-").lower())
    for line in metadata.requires(_CORE) or ():
        name = _PROJECT.match(line)
        if name is not None and re.sub(r"[-_.]+", "-", name.group()).lower() == project:
            extra = _EXTRA.search(line)
            return extra[1] if extra else None
    return _WHERE_TRAINING_IS
