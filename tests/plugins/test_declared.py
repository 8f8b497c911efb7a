"""What a source declares: the keys of everything that is installed, as they are once it is imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from agentrl.cli.catalogue import Catalogue
from agentrl.config import Config
from agentrl.config.keys import field_at, has_short_form, known_keys, model_at
from agentrl.config.section import plain
from agentrl.config.syntax import parse_value
from agentrl.errors import one_line
from agentrl.plugins import Plugins
from agentrl.plugins.declared import Declared, Key, declared
from agentrl.plugins.source import Sources

INSTALLED = [
    entry
    for kind in ("agents", "rewards", "tasks", "backends", "algorithms", "parts", "dialects", "normalisers", "trackers")
    for entry in Plugins().entries(kind)
]


def choices(annotation: Any) -> tuple[Any, ...]:
    members = get_args(annotation) if get_origin(annotation) in (Union, type(int | None)) else [annotation]
    return tuple(value for member in members if get_origin(member) is Literal for value in get_args(member))


def value_of(key: Key) -> Any:
    """The default as a configuration would read it."""
    assert key.default is not None
    return (
        key.default
        if key.type.startswith(("text", "path")) and key.default != "null"
        else plain(parse_value(key.default))
    )


def agrees(key: Key, model: type[BaseModel], name: str) -> None:
    field = field_at(model, name.split("."))
    assert field is not None
    assert key.help == one_line(field.description or "")
    assert [plain(parse_value(each)) for each in key.choices] == list(choices(field.annotation))
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return
    if isinstance(default, BaseModel):
        assert key.default == getattr(default, "name", getattr(default, "action", ""))
    elif isinstance(default, list):
        assert value_of(key) == [getattr(each, "name", each) for each in default]
    else:
        assert value_of(key) == (str(default) if isinstance(default, Path) else default)


def test_the_keys_of_the_configuration_are_told_as_they_are() -> None:
    told = {key.name: key for key in Catalogue(Plugins()).all_keys()}
    sections = {
        name
        for name in known_keys(Config)
        if (model := model_at(Config, name.split("."))) is not None and not has_short_form(model)
    }
    listed = {name for name in known_keys(Config) if name not in sections}
    assert told.keys() == listed
    for name, key in told.items():
        agrees(key, Config, name)
        assert key.help, f"{name} has no help"
    assert told["training.schedule"].type == "constant or linear or cosine"
    assert told["rollout.mode"].type == "name, or {name: …, its keys}"
    assert told["rollout.max_workers"].type == "integer or null, at least 1"
    assert told["training.learning_rate"].default == "auto"
    assert (told["agent.name"].default, told["reward.name"].default) == ("math", None)


@pytest.mark.parametrize("entry", INSTALLED, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_the_settings_of_what_is_installed_are_told_as_they_are(entry: Any) -> None:
    told = declared(entry.target, entry.kind, Sources())
    assert told is not None
    assert told.help.endswith(".")
    assert len(told.help) < 160
    settings = getattr(Plugins().get(entry.kind, entry.name), "Settings", None)
    if settings is not None:
        assert [key.name for key in told.keys] == [field.alias or name for name, field in settings.model_fields.items()]
        for key in told.keys:
            agrees(key, settings, key.name)
            assert (key.default is None) == field_at(settings, [key.name]).is_required()


MODULES = {
    "pack/__init__.py": "from .inner import Relative\nraise RuntimeError('imported')\n",
    "pack/inner.py": '''
import json
from typing import Annotated, Literal, Optional
from pydantic import BaseModel, Field
from pack.other import Base as Renamed, LIMIT
if True:
    Choice = Literal["a", "b"]

class Relative:
    """Says it. And more of it.

    Not this."""
    class Settings(Renamed):
        own: Optional[int] = None
        """Its help."""
        many: list[Choice] = Field(default_factory=list)
        bounded: Annotated[int, "x"] = Field(LIMIT, gt=0, lt=2 ** 10)
        _hidden: int = 3

class Outside:
    Settings = Relative.Settings

class Inherits(Outside):
    """Inherited."""

class Signature:
    def __init__(self, context, path: "str", *, size: int = 4, loose=None):
        pass

def score(answer, data, *, episode=None, tolerance: float = 0.5):
    """Scores (see fig. 3). Twice."""

async def agent(data, *, api_key, style: Choice = "a"):
    pass

alias = score
made = Signature()
"""Made here."""
''',
    "pack/other.py": '''
from pydantic import BaseModel
LIMIT = 64
class Base(BaseModel):
    first: str
    """The first."""
''',
    "pack/broken.py": "def (:\n",
    "circle.py": "from circle2 import x\n",
    "circle2.py": "from circle import x\n",
}

RELATIVE = [
    ("first", "text", None),
    ("own", "integer or null", "null"),
    ("many", "list of a or b", "[]"),
    ("bounded", "integer, above 0, below 1024", "64"),
]


@pytest.mark.parametrize(
    ("target", "kind", "help_", "keys"),
    [
        ("pack.inner:Relative", "tasks", "Says it.", RELATIVE),
        ("pack:Relative", "tasks", "Says it.", RELATIVE),
        ("pack.inner:Outside", "tasks", "", RELATIVE),
        ("pack.inner:Inherits", "tasks", "Inherited.", RELATIVE),
        (
            "pack.inner:Signature",
            "trackers",
            "",
            [("path", "text", None), ("size", "integer", "4"), ("loose", "anything", "null")],
        ),
        ("pack.inner:score", "rewards", "Scores (see fig. 3).", [("tolerance", "number", "0.5")]),
        ("pack.inner:alias", "rewards", "Scores (see fig. 3).", [("tolerance", "number", "0.5")]),
        ("pack.inner:agent", "agents", "", [("style", "a or b", "a")]),
        ("pack.inner:Relative.Settings", "tasks", "", None),
        ("pack.inner:nothing", "tasks", "", []),
        ("pack.broken:x", "tasks", "", []),
        ("pack.missing:x", "tasks", "", []),
        ("missing:x", "tasks", "", []),
        ("circle:x", "tasks", "", []),
        ("pack", "tasks", "", []),
    ],
)
def test_a_source_is_read_and_not_imported(
    target: str, kind: str, help_: str, keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in MODULES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    before = set(sys.modules)
    told = declared(target, kind, Sources([str(tmp_path)])) or Declared("", ())
    assert told.help == help_
    if keys is not None:
        assert [(key.name, key.type, key.default) for key in told.keys] == keys
    assert not {name for name in set(sys.modules) - before if name.startswith(("pack", "circle"))}


def test_the_choices_of_a_list_are_not_those_of_the_key() -> None:
    told = declared("agentrl.tasks.arithmetic:Arithmetic", "tasks", Sources())
    assert told is not None
    assert {key.name: key.choices for key in told.keys}["operators"] == ()
