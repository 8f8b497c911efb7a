"""Cost as a value: it adds up, and what is written of it is read again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.config.prices import PricesSection, TokenPrice
from agentrl.costs.contract import Usage
from agentrl.costs.cost import Cost
from agentrl.costs.meter import CostMeter, price_of_usage

COUNTS = st.integers(0, 10**9)
USAGES = st.builds(
    lambda requests, unknown, prompt, cached, completion: Usage(
        requests + unknown, unknown, prompt, min(cached, prompt), completion
    ),
    *[COUNTS] * 5,
)
STAGES = st.sampled_from(["rollout", "evaluation", "learner", "proof"])
ROLES = st.sampled_from(["policy", "judge", "teacher", "other"])
PRICES = st.builds(
    lambda prompt, cached, completion: TokenPrice(prompt=prompt, cached=cached, completion=completion),
    *[st.integers(0, 10**6).map(float)] * 3,
)
SPENT = st.lists(st.tuples(STAGES, ROLES, USAGES), max_size=4)


def cost_of(spent: list[tuple[str, str, Usage]]) -> Cost:
    return sum((Cost.of_usage(stage, role, usage) for stage, role, usage in spent), Cost())  # type: ignore[arg-type]


@given(SPENT, SPENT)
def test_costs_add_up_whatever_their_order(one, other):
    first, second = cost_of(one), cost_of(other)
    assert first + second == second + first == cost_of([*one, *other])
    assert {name: value for name, value in (first + second - second).numbers.items() if value} == {
        name: value for name, value in first.numbers.items() if value
    }


@given(SPENT)
def test_what_lines_and_summaries_say_of_a_cost_is_the_cost(spent):
    cost = cost_of(spent)
    assert Cost.of_metrics(cost.metrics()) == cost
    assert Cost.from_json(json.loads(json.dumps(cost.to_json("USD")))) == cost


@given(USAGES, USAGES, PRICES, st.integers(0, 1000))
def test_money_is_linear_in_usage_and_in_prices(one, other, price, times):
    together = price_of_usage(one + other, price)
    assert together == pytest.approx(price_of_usage(one, price) + price_of_usage(other, price))
    scaled = TokenPrice(**{name: times * value for name, value in price})
    assert price_of_usage(one, scaled) == pytest.approx(times * price_of_usage(one, price))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


LINES = st.lists(st.tuples(st.sampled_from(["step", "evaluation"]), SPENT, st.integers(0, 3600)), max_size=5)
ALL_PRICES = PricesSection(
    currency="EUR", tokens={"judge": TokenPrice(prompt=2.0, completion=4.0)}, machine_hour=1.0, gpu_hour=3.0, gpus=2
)


@settings(max_examples=50)
@given(LINES, SPENT, st.integers(0, 5), st.sampled_from([PricesSection(), ALL_PRICES]))
def test_the_lines_and_what_came_after_the_last_one_are_the_run(lines, rest, undone, prices):
    """Also where it was resumed, and some of its lines were taken back."""
    clock = Clock()
    before = CostMeter(prices, clock)
    written = _written(before, clock, lines)
    spent, kept = before.run(), [Cost.of_metrics(line) for line in written[: len(written) - undone]]
    meter = CostMeter(prices, clock)
    meter.take_up(spent, sum(kept, Cost()))
    again = [Cost.of_metrics(line) for line in _written(meter, clock, [*lines, ("step", [], 1), ("evaluation", [], 0)])]
    clock.now += 7
    for stage, role, usage in rest:
        meter.spend(stage, role, "model", usage)  # type: ignore[arg-type]
    tail = meter.run() - sum([*kept, *again], Cost())
    assert tail.seconds == pytest.approx(7)
    assert tail.usage("judge").prompt_tokens == sum(usage.prompt_tokens for _, role, usage in rest if role == "judge")
    everything = [each for _, part, _ in (*lines, *lines) for each in part] + rest
    total = meter.run()
    assert total.usage("policy").requests == sum(each.requests for _, role, each in everything if role == "policy")
    assert total.seconds == pytest.approx(2 * sum(seconds for _, _, seconds in lines) + 1 + 7)
    if prices.known:
        judges = [usage for _, role, usage in everything if role == "judge"]
        money = sum(price_of_usage(usage, prices.tokens["judge"]) for usage in judges)
        assert total.money == pytest.approx(money + total.seconds * 7 / 3600)
    else:
        assert total.money is None


def _written(meter: CostMeter, clock: Clock, lines) -> list[dict[str, float]]:
    made = []
    for kind, spent, seconds in lines:
        clock.now += seconds
        for stage, role, usage in spent:
            meter.spend(stage, role, "model", usage)
        metrics = {"seconds/evaluation": float(seconds)} if kind == "evaluation" else {}
        made.append({**metrics, **(meter.step(metrics) if kind == "step" else meter.evaluation(metrics))})
    return made


def test_an_evaluation_takes_what_is_its_own_and_a_step_the_rest():
    clock = Clock()
    meter = CostMeter(PricesSection(machine_hour=3600.0), clock)
    meter.spend("rollout", "policy", "m", Usage(prompt_tokens=5))
    meter.spend("evaluation", "policy", "m", Usage(prompt_tokens=7))
    clock.now += 10
    line = meter.evaluation({"seconds/evaluation": 4.0})
    assert line == {
        "cost/seconds": 4.0,
        "cost/machine/money": 4.0,
        "cost/evaluation/policy/requests": 1,
        "cost/evaluation/policy/prompt_tokens": 7,
        "cost/money": 4.0,
    }
    line = meter.step({})
    assert (line["cost/seconds"], line["cost/rollout/policy/prompt_tokens"]) == (6.0, 5)
    assert "cost/evaluation/policy/requests" not in line


def test_a_models_price_goes_before_its_roles_and_what_has_none_is_told():
    prices = PricesSection(
        tokens={name: TokenPrice(prompt=price) for name, price in {"mini": 1.0, "judge": 2.0, "big": 9.0}.items()}
    )
    meter = CostMeter(prices)
    for role, model in (("judge", "mini"), ("judge", "other"), ("teacher", "huge"), ("policy", "tiny")):
        meter.spend("rollout", role, model, Usage(prompt_tokens=1_000_000))  # type: ignore[arg-type]
    assert meter.run().money == pytest.approx(3.0)
    missing, unused = meter.gaps()
    assert "no price for the teacher 'huge'" in missing
    assert "prices.tokens.big was not used" in unused


@pytest.mark.parametrize("usage", [None, "90", {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": 2}])
def test_an_answer_that_does_not_name_its_tokens_is_unknown(usage):
    assert Usage.of_answer(usage) == Usage(1, unknown=1)


def test_an_answer_says_what_was_cached():
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    assert Usage.of_answer(usage) == Usage(1, 0, 9, 4, 2)
