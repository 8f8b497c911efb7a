"""States of the learner that are set aside while an engine has the device: they come back as they were."""

from __future__ import annotations

import pytest
import torch
from tests.learner.test_learner import folder, learner, same, shared_prompts, state  # noqa: F401 - a fixture

from agentrl.learner.aside import Aside
from agentrl.learner.masters import Masters


def held(made):
    """The tensors that only a step needs: masters and moments."""
    masters = {f"master of {name}": tensor for name, tensor in made._masters.tensors().items()}
    moments = {
        f"{number} {name}": value
        for number, moment in enumerate(made._optimiser.states().values())
        for name, value in moment.items()
        if isinstance(value, torch.Tensor) and value.ndim
    }
    return masters | moments


@pytest.mark.parametrize("training", [{"precision": "float32"}, {"precision": "bfloat16"}])
def test_what_is_set_aside_is_elsewhere_and_comes_back_bit_for_bit(folder, training):  # noqa: F811
    made, groups = learner(folder, **training), shared_prompts()
    made.step(groups)
    before = {name: tensor.clone() for name, tensor in held(made).items()}
    places = {name: tensor.data_ptr() for name, tensor in held(made).items()}
    made.set_aside()
    moved = {name for name, tensor in held(made).items() if tensor.data_ptr() != places[name]}
    is_master = training["precision"] == "bfloat16"
    assert moved == {name for name in before if is_master or not name.startswith("master")}
    assert moved
    made.set_aside()
    made.bring_back()
    made.bring_back()
    assert same(held(made), before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_with_states_aside_between_them_make_the_same_weights(folder, tmp_path, precision):  # noqa: F811
    plain, taking_turns = (learner(folder, precision=precision) for _ in range(2))
    for seed in range(3):
        groups = shared_prompts(seed)
        taking_turns.set_aside()
        taking_turns.bring_back()
        assert plain.step(groups)["policy/loss"] == taking_turns.step(groups)["policy/loss"]
        taking_turns.set_aside()  # The next step takes them back by itself.
        assert same(state(plain), state(taking_turns))
    for made, name in ((plain, "plain"), (taking_turns, "aside")):
        (tmp_path / name).mkdir()
        made.save_state(tmp_path / name)
    resumed = learner(folder, precision=precision)
    resumed.set_aside()
    resumed.load_state(tmp_path / "aside")
    assert same(held(plain), {**held(plain), **{k: v for k, v in held(resumed).items() if not k.startswith("master")}})


def test_what_is_not_on_the_device_stays_where_it_is():
    """Offloaded masters are on the CPU for good, and must not follow those of the device back to it."""
    layer, masters = torch.nn.Linear(2, 2), Masters()
    masters.take(layer, torch.device("cpu"), torch.float32, offload=True)
    moments = {master: {"exp_avg": torch.zeros(2)} for master in masters.parameters.values()}
    places = [master.data_ptr() for master in masters.parameters.values()]
    aside = Aside(masters, lambda: [moments], torch.device("meta"))
    aside.set_aside()
    aside.bring_back()
    assert [master.data_ptr() for master in masters.parameters.values()] == places
    assert all(moment["exp_avg"].device.type == "cpu" for moment in moments.values())
