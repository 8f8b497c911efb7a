"""References: how a configuration, a command line or a script says which object it means, and importing that object.

``name`` and ``dist/name`` are registered names. ``pkg.mod:Obj`` and ``pkg.mod.Obj`` are an attribute of a module that
can be imported from here, the current folder included, after what is installed; ``folder/pkg.mod:Obj`` is imported
from that folder. ``file.py:Obj`` is an attribute of a file, and ``file.py`` the only object in it that fits. Errors
say which part of a reference is at fault.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from itertools import takewhile
from pathlib import Path
from types import ModuleType

from agentrl.errors import AgentRLError, ConfigError, PluginError, near_files, near_matches, one_line
from agentrl.extras import missing_extra

__all__ = [
    "FileReference",
    "ModuleReference",
    "NameReference",
    "Reference",
    "attribute_of",
    "dotted_reference",
    "import_file",
    "import_module",
    "import_target",
    "no_such_file",
    "only_object",
    "parse_reference",
    "reason_of",
]


@dataclass(frozen=True, slots=True)
class NameReference:
    """A registered name, or ``dist/name``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class ModuleReference:
    """An attribute of a module; without one, whatever in the module fits."""

    module: str
    attribute: str | None
    folder: Path | None = None
    """Where it is imported from; ``None`` for the current folder and whatever is installed."""

    def __str__(self) -> str:
        where = str(self.folder / self.module if self.folder else self.module)
        return f"{where}:{self.attribute}" if self.attribute else where


@dataclass(frozen=True, slots=True)
class FileReference:
    """An attribute of a Python file; without one, whatever in the file fits."""

    path: Path
    attribute: str | None

    def __str__(self) -> str:
        return f"{self.path}:{self.attribute}" if self.attribute else str(self.path)


Reference = NameReference | ModuleReference | FileReference


def parse_reference(text: str) -> Reference:
    """What ``text`` refers to, by its form alone."""
    if text.endswith(".py"):
        return FileReference(Path(os.path.expanduser(text)), None)
    head, colon, attribute = text.rpartition(":")
    if head.endswith(".py"):
        return FileReference(Path(os.path.expanduser(head)), attribute or None)
    if colon:
        folder, slash, module = head.rpartition("/")
        return ModuleReference(module, attribute or None, Path(os.path.expanduser(folder or "/")) if slash else None)
    return NameReference(text)


def dotted_reference(name: str) -> ModuleReference | None:
    """``pkg.mod.Obj`` as ``pkg.mod:Obj``, or ``pkg.mod`` without an attribute; ``None`` where no module is meant.

    The module is the longest part that can be found from here, the current folder included. Nothing is imported.
    """
    words = name.split(".")
    if len(words) < 2 or not all(word.isidentifier() for word in words):
        return None
    _import_from(Path.cwd())
    modules = (".".join(words[:count]) for count in range(1, len(words) + 1))
    module = deque(takewhile(_is_module, modules), maxlen=1)
    if not module:
        return None
    return ModuleReference(module[0], name[len(module[0]) + 1 :] or None)


def _is_module(name: str) -> bool:
    return _spec(name) is not None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is. The packages that hold it are looked into, not imported."""
    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(name)
        holder = _spec(parent)
    except (ImportError, ValueError):  # A module that was made by other means than an import has no spec.
        return None
    folders = None if holder is None else holder.submodule_search_locations
    return None if folders is None else PathFinder.find_spec(name, folders)


_LOAD_FAILURES = (Exception, SystemExit)
"""What importing a module may raise. A keyboard interrupt comes from the user and passes."""


def import_target(target: str) -> object:
    """The object that an entry point's ``module:attribute`` or ``module`` names.

    A plugin's author wrote the target, so whatever is wrong with it is a ``PluginError``.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except _LOAD_FAILURES as error:
        raise _load_error(error, f"importing {module_name}") from error
    try:
        return _walk(module, attribute) if attribute else module
    except AttributeError as error:
        raise PluginError(f"{module_name} has no {attribute!r}", fix="update or reinstall the plugin") from error
    except _LOAD_FAILURES as error:
        raise _load_error(error, f"looking up {target}") from error


def import_module(name: str, noun: str, folder: Path | None = None) -> ModuleType:
    """The module ``name``, searched for in ``folder`` too, by default the current one, after all that is installed.

    Raises ``ConfigError`` where there is no such module and ``PluginError`` where it does not load.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{name!r} cannot name a module", fix="write it as `import` takes it: pkg.mod:Obj")
    _import_from(Path.cwd() if folder is None else folder.resolve())
    try:
        return importlib.import_module(name)
    except _LOAD_FAILURES as error:
        if isinstance(error, ModuleNotFoundError) and _is_or_holds(error.name, name):
            raise ConfigError(f"there is no {noun} module {error.name!r}", fix=_import_fix(str(error.name))) from error
        raise _load_error(error, f"{noun} module {name!r}") from error


def no_such_file(path: Path, noun: str) -> ConfigError:
    """The error for a file that is not there, with the names that are near."""
    fix = near_files(path, path.parent.glob("*.py"), ".py file")
    return ConfigError(f"{noun} file {str(path)!r} does not exist", fix=fix)


def import_file(path: Path, noun: str) -> ModuleType:
    """The Python file at ``path`` as a module, run once a process; it may import its neighbours,
    but for those with a name of what is installed.

    Raises ``ConfigError`` where there is no such file and ``PluginError`` where it does not load.
    """
    if not path.is_file():
        raise no_such_file(path, noun)
    resolved = path.resolve()
    _import_from(resolved.parent)
    name = _module_name(resolved)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except _LOAD_FAILURES as error:
        del sys.modules[name]
        raise _load_error(error, f"{noun} file {str(path)!r}") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(path: Path) -> str:
    """The name by which ``import`` finds the file, so that objects in it can be pickled; else a unique name."""
    import hashlib

    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):  # A dot in the name, or a module of this name that was made by other means.
        spec = None
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path:
        return path.stem
    return f"_agentrl_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def attribute_of(module: ModuleType, attribute: str, where: str) -> object:
    """``module.attribute``, which may be dotted. Raises ``ConfigError`` with the names that are near."""
    try:
        return _walk(module, attribute)
    except AttributeError as error:
        fix = _instead_of(module, attribute) or near_matches(attribute.partition(".")[0], _public_names(module))
        raise ConfigError(f"{where} has no {attribute!r}", fix=fix) from error
    except _LOAD_FAILURES as error:
        raise _load_error(error, f"{attribute} of {where}") from error


def _public_names(module: ModuleType) -> list[str]:
    """What a module defines, and the modules in it where it is a package."""
    import pkgutil

    named = vars(module).items()
    names = [name for name, value in named if not (name.startswith("_") or isinstance(value, ModuleType))]
    return [*names, *(inner.name for inner in pkgutil.iter_modules(getattr(module, "__path__", ())))]


def _instead_of(module: ModuleType, attribute: str) -> str | None:
    """How to name a file of the current folder that an installed module of the same name hides."""
    file = Path(*module.__name__.split(".")).with_suffix(".py")
    origin = getattr(module, "__file__", None) or "built in"
    if not file.is_file() or Path(origin).resolve() == file.resolve():
        return None
    return f"that module is {origin}; for the file here write {file}:{attribute}"


def reason_of(error: BaseException) -> str:
    """An exception on one line."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _walk(value: object, attribute: str) -> object:
    for name in attribute.split("."):
        value = getattr(value, name)
    return value


def _load_error(error: BaseException, what: str) -> AgentRLError:
    """The error for a module that raised; one that already says what to do passes as it is."""
    if isinstance(error, AgentRLError):
        return error
    if missing := missing_extra(error):
        return missing
    return PluginError(f"{what} raised {reason_of(error)}{_place(error)}", fix=_load_fix(error))


def _place(error: BaseException) -> str:
    """`` at file.py:3``, the innermost line that ran; a syntax error says its own."""
    if isinstance(error, SyntaxError):
        return ""
    import traceback

    machinery = (
        __file__,
        importlib.__file__,
        "<frozen importlib._bootstrap>",
        "<frozen importlib._bootstrap_external>",
    )
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in machinery]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _load_fix(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install {error.name.split('.')[0]!r} for {sys.executable}"
    return "AGENTRL_DEBUG=1 shows the traceback"


def _import_fix(missing: str) -> str:
    import pkgutil

    parent, _, name = missing.rpartition(".")
    folders = sys.modules[parent].__path__ if parent else [str(Path.cwd())]
    near = near_matches(name, [module.name for module in pkgutil.iter_modules(folders)])
    if near.startswith("did you mean"):
        return near
    return f"install it for {sys.executable}, or run from the folder that holds it"


def _is_or_holds(missing: str | None, name: str) -> bool:
    """Whether ``missing`` is the module ``name`` or one of its parents, not something that it imports."""
    return missing is not None and (name == missing or name.startswith(f"{missing}."))


def _import_from(folder: Path) -> None:
    if str(folder) not in sys.path and not (folder == Path.cwd() and "" in sys.path):
        sys.path.append(str(folder))  # Its `math.py` or `agents.py` is not what anybody else means by that name.


Adapts = Callable[[object], bool]
"""Whether a framework plugin turns an object into an agent."""


def only_object(module: ModuleType, where: str, kind: str, noun: str, adapts: Adapts) -> object:
    """The only thing in ``module`` that looks like one of ``kind``.

    ``where`` is how a reference names the module or its file. Raises ``ConfigError`` where none or several things do.
    """
    found = _agents(module, adapts) if kind == "agents" else _defined(module, inspect.isroutine, inspect.isclass)
    if not found:
        raise ConfigError(f"{where} defines no {noun}", fix=f"define one, or name an object as {where}:Obj")
    if len(found) > 1:
        names = ", ".join(found)
        raise ConfigError(f"{where} defines several: {names}", fix=f"say which, as in {where}:{next(iter(found))}")
    return next(iter(found.values()))


def _agents(module: ModuleType, adapts: Adapts) -> dict[str, object]:
    """Objects with an async ``run``; else objects that a plugin adapts; else async callables."""
    return (
        _defined(module, _has_async_run)
        or {name: value for name, value in _public(module).items() if adapts(value)}
        or _defined(module, inspect.iscoroutinefunction, _has_async_call)
    )


def _has_async_run(value: object) -> bool:
    return inspect.iscoroutinefunction(getattr(value, "run", None))


def _has_async_call(value: object) -> bool:
    called = value if inspect.isclass(value) else type(value)
    return any(inspect.iscoroutinefunction(vars(base).get("__call__")) for base in called.__mro__)


def _public(module: ModuleType) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _defined(module: ModuleType, *tests: Callable[[object], bool]) -> dict[str, object]:
    """The public classes, functions and instances of the file's own classes that pass one of ``tests``."""
    return {
        name: value
        for name, value in _public(module).items()
        if getattr(value, "__module__", None) == module.__name__ and any(test(value) for test in tests)
    }
