"""What a run chooses where its config leaves it open, and what it leaves as it is written."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentrl import Config, load_config
from agentrl.errors import PluginError
from agentrl.plugins import Plugins
from agentrl.training.choices import choices, told, with_learning_rate, with_suggestions

SUGGESTS: dict[str, Any] = {
    "tasks.train": {"name": "arithmetic", "digits": 1, "size": 86},
    "tasks.eval": {"name": "arithmetic-heldout", "digits": 1, "size": 14},
    "rollout.max_tokens": 16,
}


@dataclass
class Registered:
    """Plugins that register one model, ``tiny``."""

    suggests: Any

    def entries(self, kind: str) -> list[Any]:
        assert kind == "models"
        return [SimpleNamespace(is_called=lambda name: name == "tiny")]

    def get(self, kind: str, name: str) -> Any:
        return SimpleNamespace(suggests=self.suggests)


def suggesting(suggests: Any = SUGGESTS) -> Plugins:
    return cast(Plugins, Registered(suggests))


def configured(*settings: str) -> Config:
    return load_config(None, *settings, environ={})


def test_a_learning_rate_of_auto_becomes_a_number_by_the_model(tiny_folder):
    config = configured()
    chosen = with_learning_rate(config, tiny_folder)
    assert chosen.training.learning_rate == 1e-4
    (choice,) = choices(config, chosen, Plugins(), tiny_folder)
    assert choice == ("training.learning_rate", 1e-4, "auto: for a model of 436 thousand parameters")
    adapted = configured("training.lora=4")
    assert with_learning_rate(adapted, tiny_folder).training.rate == 1e-3
    assert with_learning_rate(chosen, tiny_folder) is chosen
    assert choices(chosen, chosen, Plugins(), tiny_folder) == []


def test_what_a_model_suggests_takes_the_place_of_defaults_and_is_told(tiny_folder):
    config = configured("training.learning_rate=0.1")
    chosen = with_suggestions(config, suggesting())
    assert chosen.tasks.train.options == {"digits": 1, "size": 86}
    assert chosen.tasks.eval is not None
    assert chosen.tasks.eval.options == {"digits": 1, "size": 14}
    assert chosen.rollout.max_tokens == 16
    assert chosen.rollout.group_size == config.rollout.group_size
    found = choices(config, chosen, suggesting(), tiny_folder)
    assert [choice.key for choice in found] == list(SUGGESTS)
    assert {choice.why for choice in found} == {"suggested by tiny"}
    assert told(found[0].value) == "{name: arithmetic, digits: 1, size: 86}"


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        (("rollout.max_tokens=64",), {"tasks.train", "tasks.eval"}),
        (("rollout.max_tokens=128",), {"tasks.train", "tasks.eval"}),
        (("tasks.eval=null",), {"tasks.train", "rollout.max_tokens"}),
        (("tasks.train=mine.jsonl",), set()),
        (("tasks.train=arithmetic",), set()),
        (("tasks.train.digits=3",), set()),
        (("model=other",), set()),
    ],
)
def test_what_is_written_stays_and_with_tasks_of_ones_own_nothing_is_suggested(settings, taken, tiny_folder):
    config = configured(*settings)
    chosen = with_suggestions(config, suggesting())
    found = choices(config, chosen, suggesting(), tiny_folder)
    assert {choice.key for choice in found} - {"training.learning_rate"} == taken
    if not taken:
        assert chosen == config


def test_a_model_without_suggestions_changes_nothing():
    assert with_suggestions(configured(), Plugins()) == configured()


def test_a_suggestion_that_is_none_is_the_plugins_fault():
    with pytest.raises(PluginError, match=r"model 'tiny' suggests rollout\.max_tokens='many'"):
        with_suggestions(configured(), suggesting({"rollout.max_tokens": "many"}))
