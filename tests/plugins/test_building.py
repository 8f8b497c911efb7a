"""Parts of a run built from a name and its keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel

from agentrl.errors import AgentRLError, ConfigError, PluginError
from agentrl.plugins.building import build

if TYPE_CHECKING:
    from collections import Counter


@dataclass
class Named:
    """What a configuration holds of a part."""

    options: dict[str, Any] = field(default_factory=dict)
    name: str = "thing"


class WithSettings:
    class Settings(BaseModel):
        size: int = 1
        mode: Literal["fast", "slow"] = "fast"

    def __init__(self, settings: Settings, seed: int = 0) -> None:
        self.settings, self.seed = settings, seed
        if settings.size > 9:
            raise ValueError("too large")


class WithKeywords:
    def __init__(self, path: Path, *, ratio: float = 0.5, seed: int = 0, counts: Counter[str] | None = None) -> None:
        self.path, self.ratio, self.seed, self.counts = path, ratio, seed, counts


class Annotated:
    def __init__(self, path: Path, ratio: float = 0.5, other: Named | None = None) -> None:
        self.path, self.ratio, self.other = path, ratio, other


class ContextOnly:
    class Settings(BaseModel):
        size: int = 1

    def __init__(self, context: object) -> None:
        self.context = context


def open_to_all(**everything: object) -> dict[str, object]:
    return everything


def score(answer: float, data: dict[str, Any], *, tolerance: float = 0.1) -> bool:
    return abs(answer - data["answer"]) <= tolerance


class Scorer:
    def __init__(self, tolerance: float = 0.1) -> None:
        self.tolerance = tolerance

    def __call__(self, answer: float) -> float:
        return answer * self.tolerance


def made(obj: Any, options: dict[str, Any] | None = None, kind: str = "tasks", **context: object) -> Any:
    return build(obj, kind, Named(options or {}), "tasks.train", context)


def test_settings_validate_the_keys_and_the_signature_chooses_the_context() -> None:
    thing = made(WithSettings, {"size": "3"}, seed=7, unwanted=1)
    assert (thing.settings.size, thing.settings.mode, thing.seed) == (3, "fast", 7)


def test_keys_become_arguments_of_the_annotated_type() -> None:
    thing = made(Annotated, {"path": "x/y", "ratio": 1})
    assert (thing.path, thing.ratio, type(thing.ratio)) == (Path("x/y"), 1.0, float)


def test_annotations_that_only_a_type_checker_sees_are_no_hindrance() -> None:
    assert made(WithKeywords, {"path": "x"}, seed=7).seed == 7


def test_an_object_that_takes_only_the_runs_context_still_has_its_keys_validated() -> None:
    assert made(ContextOnly, {"size": 3}, context="c").context == "c"
    with pytest.raises(ConfigError, match=r"tasks\.train\.size should be a valid integer, not 'x'"):
        made(ContextOnly, {"size": "x"}, context="c")


def test_open_keywords_take_everything() -> None:
    assert made(open_to_all, {"a": 1}, seed=7) == {"a": 1, "seed": 7}


def test_an_object_that_is_no_callable_is_the_part_itself() -> None:
    assert made(["a task"]) == ["a task"]
    with pytest.raises(ConfigError, match=r"there is no key 'tasks\.train\.size'"):
        made(["a task"], {"size": 1})


@pytest.mark.parametrize(
    ("obj", "has"), [(["a task"], "none"), (ContextOnly, "size"), (lambda digits, seed=0: [], "digits, seed")]
)
def test_a_key_like_none_of_a_part_is_refused_with_the_part_that_was_meant_by_it(obj: Any, has: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(obj, {"path": "questions.jsonl"})
    assert caught.value.message == "there is no key 'tasks.train.path'"
    assert caught.value.fix == f"'thing' has {has}"


def test_a_reward_function_is_given_its_keys_and_called_later() -> None:
    reward = made(score, {"tolerance": 2}, "rewards")
    assert reward(1, {"answer": 3}) is True
    assert made(score, kind="rewards") is score
    assert made(Scorer(3), kind="rewards")(2) == 6


def test_a_reward_class_is_built_now() -> None:
    assert made(Scorer, {"tolerance": 2}, "rewards")(3) == 6


@pytest.mark.parametrize(
    ("obj", "options", "kind", "message"),
    [
        (WithSettings, {"sise": 1}, "tasks", r"no key 'tasks\.train\.sise' \(did you mean 'size'"),
        (WithSettings, {"size": "many"}, "tasks", r"tasks\.train\.size should be a valid integer, not 'many'"),
        (WithSettings, {"mode": "quick"}, "tasks", r"tasks\.train\.mode should be 'fast' or 'slow', not 'quick'"),
        (Annotated, {"path": "x", "ratoi": 1}, "tasks", r"no key 'tasks\.train\.ratoi' \(did you mean 'ratio'"),
        (
            Annotated,
            {"path": "x", "ratio": "much"},
            "tasks",
            r"tasks\.train\.ratio should be a valid number, not 'much'",
        ),
        (Annotated, {}, "tasks", r"tasks\.train\.path is missing, a Path \('thing' needs it: set tasks\.train\.path\)"),
        (WithKeywords, {"path": "x", "seed": 1}, "tasks", r"no key 'tasks\.train\.seed'"),
        (open_to_all, {"seed": 1}, "tasks", r"no key 'tasks\.train\.seed'"),
        (score, {"data": {}}, "rewards", r"no key 'tasks\.train\.data' \('thing' has tolerance\)"),
        (score, {"answer": 1}, "rewards", r"no key 'tasks\.train\.answer' \('thing' has tolerance\)"),
    ],
)
def test_a_key_that_nobody_takes_or_of_the_wrong_type_is_named(
    obj: Any, options: dict[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        made(obj, options, kind, seed=7)
    assert "\n" not in str(caught.value)


def test_what_a_part_raises_while_it_is_built_is_a_plugin_error_and_our_own_errors_pass() -> None:
    def refuses() -> None:
        raise AgentRLError("as it is")

    with pytest.raises(PluginError, match=r"tasks\.train='thing' could not be built: ValueError: too large") as caught:
        made(WithSettings, {"size": 10})
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(AgentRLError, match=r"^as it is$"):
        made(refuses)
