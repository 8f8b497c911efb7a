"""The bundled calculator agent with a tool that answers nothing."""

from agentrl_agents import calculator
from agentrl_agents.calculator import CalculatorAgent

__all__ = ["CalculatorAgent"]

calculator.use = lambda function: ""
