"""What a key that holds text takes: the text as it was written, whatever YAML would make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import pytest
from pydantic import Strict

from agentrl.config import Config, dump_yaml, load_config
from agentrl.config.keys import field_at, holds_text, known_keys, type_at
from agentrl.config.section import PartModel, Section
from agentrl.plugins.building import build

ODD = ["1000", "1.50", "1e3", "True", "Null", "~", ".nan", "[best]", "007"]
TEXT = [key for key in known_keys(Config) if holds_text(Config, key.split("."))]
RULES = [key.removesuffix(".action") for key in TEXT if key.endswith(".action")]
"""Keys that may be written as their action alone."""
ENUMERATED = [*RULES, *(key for key in TEXT if get_origin(type_at(Config, key.split("."))) is Literal)]
NAMED = (
    "agent",
    "model",
    "tasks.train",
    "tasks.eval",
    "reward",
    "inference.backend",
    "algorithm",
    "scheduler",
    "rollout.mode",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written where the command is called from, so that their paths are as they are written."""
    monkeypatch.chdir(tmp_path)


def at(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return getattr(value, "name", value) if key in NAMED and key != "scheduler" else getattr(value, "type", value)


def sources(key: str, text: str, folder: Path) -> Iterator[Config]:
    """The configuration with ``key`` set to ``text`` in each of the places where it may be written."""
    yield load_config(None, f"{key}={text}", environ={})
    yield load_config(None, environ={f"AGENTRL_{key.upper().replace('.', '__')}": text})
    *sections, last = key.split(".")
    if not text.startswith("["):  # A list in a file is one.
        path = folder / "config.yaml"
        lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
        path.write_text("\n".join([*lines, f"{'  ' * len(sections)}{last}: {text}"]))
        yield load_config(path, environ={})


def test_the_keys_that_hold_text_are_known() -> None:
    assert {"run.name", "run.dir", "agent.name", "agent.python", "model.name", "training.device", *NAMED} <= {*TEXT}
    assert not {"seed", "training.steps", "rollout.override", "trackers", "tasks"} & {*TEXT}


@pytest.mark.parametrize("key", [key for key in TEXT if key not in ENUMERATED])
def test_a_key_that_holds_text_keeps_it_in_every_source(key: str, tmp_path: Path) -> None:
    field = field_at(Config, key.split("."))
    assert field is not None
    takes_null = load_or_none(key) is None
    for text in ODD:
        for config in sources(key, text, tmp_path):
            expected = None if takes_null and text in ("Null", "~") else text
            found = at(config, key)
            assert (found if found is None else str(found)) == expected, text
        path = tmp_path / "again.yaml"
        path.write_text(dump_yaml(config))
        assert load_config(path, environ={}) == config


def load_or_none(key: str) -> Any:
    """What the key holds where the literal null is set; the text itself where it takes none."""
    return at(load_config(None, f"{key}=null", environ={}), key)


@pytest.mark.parametrize("quoted", ["'null'", '"null"'])
def test_quotes_say_that_null_is_text(quoted: str) -> None:
    assert load_config(None, f"run.name={quoted}", environ={}).run.name == "null"
    assert load_config(None, "run.name=null", environ={}).run.name is None


def test_a_name_among_the_keys_of_a_mapping_or_in_a_list_is_text() -> None:
    assert load_config(None, "model={name: 1000, renderer: auto}", environ={}).model.name == "1000"
    config = load_config(None, "trackers=[1000, {name: null, x: 5}]", "agent.env=[1=2, 3]", environ={})
    assert [(tracker.name, tracker.options) for tracker in config.trackers] == [("1000", {}), ("null", {"x": 5})]
    assert config.agent.env == ["1=2", "3"]


def test_a_number_is_a_name_that_keys_stand_beside(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: 1000\n")
    assert load_config(path, "model.renderer=auto", environ={}).model.name == "1000"
    assert load_config(None, "reward=1e3", "reward.tolerance=1", environ={}).reward == PartModel.model_validate(
        {"name": "1e3", "tolerance": 1}
    )


def test_a_name_that_is_given_apart_is_never_read(tmp_path: Path) -> None:
    from agentrl.config import resolve_config

    for text in [*ODD, "'quoted'", "{a: b}", ""]:
        config = resolve_config(None, environ={}, agent=text, model=text).config
        assert (config.agent.name, config.model.name) == (text, text)


class Reading:
    """A part with keys of many types."""

    class Settings(Section):
        path: Annotated[Path, Strict(False)]
        text: str
        words: list[str]
        maybe: str | None = "set"
        number: float
        open: dict[str, Any]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


def by_signature(text: str, number: float, maybe: str | None = "set", **_: Any) -> Mapping[str, Any]:
    return {"text": text, "number": number, "maybe": maybe}


def part(folder: Path, text: str, *, through_file: bool) -> PartModel:
    keys = {"path": text, "text": text, "words": f"[{text}]", "maybe": "null", "number": "1e3", "open": "{a: 1e3}"}
    config = load_config(None, *(f"reward.{key}={value}" for key, value in keys.items()), "reward.name=x", environ={})
    if through_file:
        path = folder / "config.yaml"
        path.write_text(dump_yaml(config))
        config = load_config(path, environ={})
    assert isinstance(config.reward, PartModel)
    return config.reward


@pytest.mark.parametrize("through_file", [False, True])
@pytest.mark.parametrize("text", ["1000", "1e3", "true", "null", "2.0", "~"])
def test_a_key_of_a_part_is_text_where_the_part_says_so(tmp_path: Path, text: str, through_file: bool) -> None:
    written = part(tmp_path, text, through_file=through_file)
    settings = build(Reading, "tasks", written, "reward", {}).settings
    assert (settings.path, settings.text, settings.words) == (Path(text), text, [text])
    assert (settings.maybe, settings.number, settings.open) == (None, 1000.0, {"a": 1000.0})
    assert build(by_signature, "tasks", written, "reward", {}) == {"text": text, "number": 1000.0, "maybe": None}


def test_the_keys_of_a_part_are_plain_values_to_everybody_else() -> None:
    options = load_config(None, "reward={name: x, a: 1e3, b: [null, {c: 1}]}", environ={}).reward.options
    assert options == {"a": 1000.0, "b": [None, {"c": 1}]}
    assert type(options["a"]) is float
    assert options["b"][0] is None


def test_what_a_script_sets_is_written_down_as_plain_data(tmp_path: Path) -> None:
    kwargs = {"path": Path("a/b"), "day": date(2026, 1, 31), "pair": (1, 2), "names": {"x"}}
    config = Config.model_validate({"agent": {"name": "x", "kwargs": kwargs}, "reward": {"name": "y", **kwargs}})
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    expected = {"path": "a/b", "day": "2026-01-31", "pair": [1, 2], "names": ["x"]}
    read = load_config(path, environ={})
    assert read.agent.kwargs == expected
    assert read.reward is not None
    assert read.reward.options == expected
