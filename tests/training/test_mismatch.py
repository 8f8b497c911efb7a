"""An engine with other weights than the learner's is found out by the mismatch of the steps."""

from __future__ import annotations

import math

import pytest

from agentrl.errors import BackendError
from agentrl.training.mismatch import MismatchWatch


def look(*mismatches, entropy=0.5):
    warnings = []
    watch = MismatchWatch(warnings.append)
    for step, mismatch in enumerate(mismatches, 1):
        watch.look(step, {} if mismatch is None else {"policy/mismatch_kl": mismatch, "policy/entropy": entropy})
    return warnings


@pytest.mark.parametrize(
    "mismatches",
    [
        (-2e-9, 3e-9, 9e-7, 5e-5),
        (1e-5, 1e-4, 2e-3, 0.02),
        (2e-3, 4e-3, 0.02, 0.09),
        (0.04, 0.1, 0.4),
        (None, 2e-9, None, 4e-9),
    ],
    ids=["32 bits", "a mixed pair", "16 bits", "fewer bits", "steps without a trained token"],
)
def test_rounding_in_any_precision_is_taken(mismatches):
    assert look(*mismatches) == []


def test_a_policy_that_was_certain_at_first_may_show_rounding_to_16_bits_later():
    assert look(1e-9, 1e-3, entropy=0.01) == []


@pytest.mark.parametrize(
    "mismatches",
    [(1e-9, 4e-4), (-1e-9, 1e-9, 4e-4), (None, 1e-9, 4e-4), (2e-3, 2e-3, 0.3), (0.04, 4.1), (1e-9, math.inf)],
)
def test_what_equal_weights_cannot_come_to_stops_the_run(mismatches):
    with pytest.raises(BackendError, match=rf"does not sample from the learner's weights: in step {len(mismatches)}"):
        look(*mismatches)


def test_an_engine_of_other_weights_from_the_start_stops_the_run():
    with pytest.raises(BackendError, match="of other weights, or of another temperature"):
        look(2.1)


def test_an_engine_that_is_far_off_from_the_start_is_warned_of():
    (warning,) = look(0.2, 0.2)
    assert "more than rounding to 16 bits" in warning
