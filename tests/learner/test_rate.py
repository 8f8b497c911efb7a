"""The learning rate by the size of a model: what is measured, a line between, and ten times that for adapters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config.training import TrainingSection
from agentrl.learner.optimiser import recommended_rate, with_rate

SIZES = st.floats(1e3, 1e12)


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(1_000, 1e-4), (440_000, 1e-4), (134_515_008, 2e-5), (600_000_000, 6.4e-6), (7_000_000_000, 1e-6), (10**12, 1e-6)],
)
def test_a_size_has_its_rate_and_an_adapter_ten_times_that(parameters: int, rate: float) -> None:
    assert recommended_rate(parameters) == pytest.approx(rate)
    assert recommended_rate(parameters, adapter=True) == pytest.approx(10 * rate)


@given(SIZES, SIZES)
def test_a_larger_model_never_has_a_larger_rate(one: float, other: float) -> None:
    small, large = sorted((int(one), int(other)))
    assert 1e-6 <= recommended_rate(large) <= recommended_rate(small) <= 1e-4


def test_only_auto_becomes_a_number_by_the_model() -> None:
    assert with_rate(TrainingSection(), 134_515_008).rate == 2e-5
    assert with_rate(TrainingSection(learning_rate=0.5), 134_515_008).rate == 0.5
    assert with_rate(TrainingSection(learning_rate=0.0), 134_515_008).rate == 0
    with pytest.raises(ValueError, match=r"training\.learning_rate is auto"):
        _ = TrainingSection().rate
