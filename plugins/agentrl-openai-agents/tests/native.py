"""Agents as their authors wrote them, for whom agentrl does not exist."""

from __future__ import annotations

from agents import Agent, function_tool


@function_tool
def add(left: int, right: int) -> int:
    """The sum of two numbers."""
    return left + right


adder = Agent(name="Adder", instructions="Add with the tool.", tools=[add], model="gpt-5.4")
triage = Agent(name="Triage", instructions="Hand over to whoever can do it.", handoffs=[adder])
ask_adder = adder.as_tool("ask_adder", "Adds two numbers.", max_turns=3)
asking = Agent(name="Asking", instructions="Ask the adder.", tools=[ask_adder])
