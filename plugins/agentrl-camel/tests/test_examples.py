"""What the example agents ask, and what they make of the answers."""

from __future__ import annotations

from natives import Play, call

from agentrl_agents.calculator import CalculatorAgent
from agentrl_camel.math import CamelMathAgent
from agentrl_camel.society import CamelSocietyAgent


class TestCamelMath:
    def test_the_policy_reads_what_the_bundled_calculator_gives_it(self, play: Play) -> None:
        ours, bundled = (play(agent, call(), "It is 85.") for agent in (CamelMathAgent, CalculatorAgent))
        assert [list(span.ids) for span in ours.tree.spans] == [list(span.ids) for span in bundled.tree.spans]
        assert (ours.answer, bundled.answer) == (1.0, 1.0)

    def test_a_wrong_answer_is_worth_nothing(self, play: Play) -> None:
        assert play(CamelMathAgent, "I guess 84.").answer == 0.0

    def test_it_is_asked_so_many_times(self, play: Play) -> None:
        assert len(play(CamelMathAgent, call(), max_turns=2).calls) == 2


class TestCamelSociety:
    def test_each_hears_the_other(self, play: Play) -> None:
        played = play(CamelSocietyAgent, "Critic 1.", "Solver 1.", "Critic 2.", "Carefully: 85.")
        question = ("user", "What is 47 + 38?")
        assert played.said(2)[1:] == [question, ("assistant", "Critic 1."), ("user", "Solver 1.")]
        assert played.said(3)[1:] == [question, ("assistant", "Solver 1."), ("user", "Critic 2.")]
        assert [made.fork_reason for made in played.calls] == [None] * 4
        assert played.answer == 1.0

    def test_only_the_solvers_last_answer_counts(self, play: Play) -> None:
        assert play(CamelSocietyAgent, "85.", "85.", "85.", "84.").answer == 0.0

    def test_they_may_go_on(self, play: Play) -> None:
        assert len(play(CamelSocietyAgent, "85.", rounds=3).calls) == 8
