"""Paths in a configuration: those of a file are relative to it, wherever a command is called from.

What is a path is told by where it stands and by what it looks like: `run.dir`, `agent.python`, `model.chat_template`
and what `sft` and `replay` take; `file.py:Obj`, and `pkg.mod:Obj` or `pkg.mod.Obj` where the module is there, wherever
a part is named and in `agent.outcomes`; the name of a folder, or of a file of tasks; a part's own keys called `path`,
`file`, `folder`, `dir` or `python`, and values of its keys that begin with `./` or `../`. What agents are given
(`agent.kwargs`) is theirs, and never touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from agentrl.config.section import Written

__all__ = ["from_folder", "to_folder"]

_KEYS_OF_PATHS = ("path", "file", "folder", "dir")
_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|gz|zst|txt|py|ya?ml|jinja)$", re.IGNORECASE)
_BY_FORM = ("./", "../")

Rewrite = Callable[[str], str]
"""From a relative path to the one that is written in its place."""
Rewritten = Callable[[Any], Any]


def from_folder(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``values`` of a file in ``folder``, with the paths that are relative to it as the current folder sees them."""
    if Path(os.path.realpath(folder)) == Path.cwd().resolve():
        return dict(values)
    return _Paths(folder, lambda path: _joined(folder, path)).rewritten(values)


def to_folder(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``values`` with paths that are relative to the current folder as a file in ``folder`` has to have them."""
    start = os.path.realpath(folder)
    here = os.path.realpath(os.curdir)
    return _Paths(Path(), lambda path: os.path.relpath(os.path.join(here, path), start)).rewritten(values)


def _joined(folder: Path, path: str) -> str:
    joined = os.path.join(folder, path)
    plain, real = os.path.normpath(joined), os.path.realpath(joined)
    if os.path.realpath(plain) == real:
        return plain
    # A link is on the way, and going up from where it leads is not going up from where it is.
    here = os.path.realpath(os.curdir)
    return os.path.relpath(real, here) if os.path.commonpath([real, here]) == here else real


class _Paths:
    """Finds the paths in the values of a configuration, as they are seen from a folder, and has them rewritten."""

    def __init__(self, folder: Path, rewrite: Rewrite) -> None:
        self._folder = folder
        self._rewrite = rewrite

    def rewritten(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values with every relative path rewritten."""
        changed = dict(values)
        _within(changed, "run", {"dir": self._path})
        _within(changed, "model", {"name": self._model, "chat_template": self._path}, bare=self._model)
        agent = {"name": self._reference, "python": self._python, "outcomes": self._references}
        _within(changed, "agent", agent, bare=self._reference)
        _within(changed, "tasks", {"train": self._tasks, "eval": self._tasks})
        _within(changed, "replay", {"run": self._data})
        _within(changed, "sft", {"data": self._data, "held_out_data": self._data})
        _within(changed, "rollout", {"mode": self._part})
        _within(changed, "inference", {"backend": self._part})
        _within(changed, "gateway", {"normalise": self._parts})
        for name in ("reward", "scheduler"):
            if name in changed:
                changed[name] = self._part(changed[name])
        if "algorithm" in changed:
            changed["algorithm"] = self._part(changed["algorithm"], inner=self._part)
        if "trackers" in changed:
            changed["trackers"] = self._parts(changed["trackers"])
        return changed

    def _parts(self, value: Any) -> Any:
        """A list of parts."""
        return [self._part(each) for each in value] if isinstance(value, list) else value

    def _part(self, value: Any, name: Rewritten | None = None, inner: Rewritten | None = None) -> Any:
        """A part: what ``name`` makes of its name, and ``inner`` of its other keys."""
        named = name or self._reference
        if isinstance(value, str | Written):
            return named(value)
        if not isinstance(value, Mapping):
            return value
        return {
            key: named(held) if key in ("name", "type") else self._key(key, held, inner) for key, held in value.items()
        }

    def _key(self, key: str, value: Any, inner: Rewritten | None) -> Any:
        if isinstance(value, str):
            if key == "python":
                return self._python(value)
            if value.startswith(_BY_FORM):
                return self._path(value)
            if key in _KEYS_OF_PATHS:
                return self._path(value) if _FILE.search(value) or self._exists(value) else value
            return inner(value) if inner else value
        if isinstance(value, list):
            return [self._key(key, each, inner) for each in value]
        if isinstance(value, Mapping):
            return {
                name: inner(held) if inner and name == "name" else self._key(name, held, inner)
                for name, held in value.items()
            }
        return value

    def _reference(self, text: Any) -> Any:
        """A reference to an object: rewritten where it means a file or a module of the folder, else unchanged."""
        if not isinstance(text, str):
            return text
        head, colon, attribute = text.rpartition(":")
        if colon:
            is_here = head.endswith(".py") or self._is_module(head)
            return f"{self._path(head)}{colon}{attribute}" if is_here else text
        return self._path(text) if text.endswith(".py") else self._dotted(text)

    def _dotted(self, text: str) -> str:
        """``pkg.mod.Obj`` as ``folder/pkg.mod:Obj`` where the folder has the module and nobody the name."""
        words = text.split(".")
        heads = (".".join(words[:count]) for count in range(1, len(words) + 1))
        module = max(takewhile(self._holds_module, heads), key=len, default=None)
        if module is None or len(words) < 2 or _is_registered(text):
            return text
        return f"{self._path(module)}:{text[len(module) + 1 :]}"

    def _references(self, values: Any) -> Any:
        return [self._reference(each) for each in values] if isinstance(values, list) else values

    def _model(self, value: Any) -> Any:
        return self._name_or_path(value, "models")

    def _tasks(self, value: Any) -> Any:
        return self._part(value, lambda name: self._name_or_path(name, "tasks"))

    def _name_or_path(self, value: Any, kind: str) -> Any:
        """A name, or the path of a file or a folder. A registered name is never a path."""
        name = _text(value)
        if name is None:
            return value
        if ":" in name or name.endswith(".py"):
            return self._reference(name)
        is_path = name.startswith(_BY_FORM) or _FILE.search(name) or self._is_folder(name)
        if is_path and not _is_registered(name, kind):
            return self._path(name)
        return self._reference(value) if kind == "tasks" else value

    def _data(self, value: Any) -> Any:
        """A file of conversations, or a run: its folder, or its name among the runs."""
        name = _text(value)
        if name is None:
            return value
        return self._path(name) if "/" in name or _FILE.search(name) or self._exists(name) else value

    def _is_module(self, name: str) -> bool:
        """Whether the first name of a module is a file or a package in the folder."""
        folder, _, module = name.rpartition("/")
        first = os.path.join(folder, module.partition(".")[0])
        return self._exists(f"{first}.py") or self._exists(f"{first}/__init__.py")

    def _holds_module(self, name: str) -> bool:
        """Whether the folder has a module of this dotted name."""
        path = name.replace(".", "/")
        return self._exists(f"{path}.py") or self._exists(f"{path}/__init__.py")

    def _exists(self, name: str) -> bool:
        return bool(name) and "\0" not in name and (self._folder / name).exists()

    def _is_folder(self, name: str) -> bool:
        return self._exists(name) and (self._folder / name).is_dir()

    def _python(self, value: Any) -> Any:
        """The path of an interpreter. Without a slash it is the name of an environment, and stays."""
        text = _text(value)
        return self._path(text) if text is not None and os.sep in text else value

    def _path(self, value: Any) -> Any:
        path = _text(value)
        if path is None or not path or "\0" in path or path.startswith("~") or os.path.isabs(path):
            return value
        return self._rewrite(path)


def _text(value: Any) -> str | None:
    """The text of a value that may be a path, such as a folder called `1000`; ``None`` for any other value."""
    if isinstance(value, Written):
        return None if value.value is None or isinstance(value.value, list) else value.text
    return str(value) if isinstance(value, str | PurePath) else None


def _within(values: dict[str, Any], section: str, keys: Mapping[str, Rewritten], bare: Rewritten | None = None) -> None:
    """Change some keys of a section; ``bare`` changes one that is written as a name."""
    held = values.get(section)
    if isinstance(held, Mapping):
        values[section] = {key: keys[key](value) if key in keys else value for key, value in held.items()}
    elif isinstance(held, str | Written) and bare:
        values[section] = bare(held)


def _is_registered(name: str, kind: str = "") -> bool:
    """Whether an entry point of ``kind``, or of any kind of ours, has this name."""
    return any(entry.group.startswith(f"agentrl.{kind}") for entry in entry_points(name=name))
