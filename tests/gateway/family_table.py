"""The table of docs/templates.md: what a model of each family does behind the gateway, asked and answered.

``python -m tests.gateway.family_table`` writes it anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import openai
from tests.gateway.family_gateway import ASK, TOOLS, FamilyGateway, family_gateway
from tests.tokens.families import FAMILIES

from agentrl.doctor.model import tools as doctors_word

__all__ = ["COLUMNS", "DOCUMENT", "documented", "measured", "table"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "templates.md"
COLUMNS = (
    "Family",
    "Renderer",
    "Ends a turn",
    "Shows tools",
    "Calls and results in history",
    "Reads calls",
    "Thinking",
    "Extends",
    "Agents with tools",
)
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
ESCAPED = r"\|"
ANSWER, THOUGHT = "It is 408.", "Multiply first."
ARGUMENTS = {"expression": "12 * 34"}


def measured(name: str) -> tuple[str, ...]:
    """The row of a family."""
    family = family_gateway(name)
    shows, reads = _shows(family), _reads(family)
    return (
        name,
        "in full" if family.renderer.name == "default" else f"`{family.renderer.name}`",
        " ".join(f"`{end}`" for end in _ends(family, name)),
        _word(shows),
        _word(_history(family)),
        _word(reads) if shows else "–",
        _thinking(family, name),
        _extends(family, tools=shows and reads),
        _agents(family),
    )


def table() -> str:
    """All rows, in Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(measured(name) for name in FAMILIES)]
    return "".join(f"| {' | '.join(cell.replace('|', ESCAPED) for cell in row)} |\n" for row in rows)


def documented() -> dict[str, tuple[str, ...]]:
    """The rows of the document, by family."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text.splitlines()]
    rows = [tuple(cell.replace(ESCAPED, "|") for cell in line) for line in lines]
    return {row[0]: row for row in rows[2:]}


def _word(answer: bool) -> str:
    return "yes" if answer else "no"


def _answer(family: FamilyGateway, end: int, *, thought: str = "") -> list[int]:
    """The ids of a turn of text as the family's policy samples it after the prompt."""
    vocabulary, template = family.renderer.vocabulary, family.renderer._template
    prompt = template.text([ASK])
    if vocabulary.special_id("<|channel|>") is not None:
        thinking = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant" if thought else ""
        text = f"{thinking}<|channel|>final<|message|>{ANSWER}"
    elif prompt.rstrip().endswith("<think>"):
        text = f"{thought}\n</think>\n\n{ANSWER}"
    else:
        text = f"<think>\n{thought}\n</think>\n\n{ANSWER}" if thought else ANSWER
    return [*vocabulary.encode(text), end]


def _ends(family: FamilyGateway, name: str) -> list[str]:
    """What ends a turn: asked of the engine, and neither in the content nor twice in the next prompt."""
    vocabulary, given = family.renderer.vocabulary, FAMILIES[name]
    found = []
    for token in dict.fromkeys((*given.ends, given.eos, given.end)):
        session, end = family.session(), vocabulary.convert_tokens_to_ids(token)
        message = family.create(session, _answer(family, end)).choices[0].message
        if end not in family.backend.requests[-1].sampling.stop_ids or message.content != ANSWER:
            continue
        family.create(session, _answer(family, end), messages=[ASK, message, ASK])
        if token + token not in re.sub(r"\s", "", family.prompt):
            found.append(token)
    return found


def _shows(family: FamilyGateway) -> bool:
    """Whether a tool's name, description and parameters reach the prompt."""
    try:
        family.create(family.session(), ANSWER, tools=TOOLS, tool_choice="none")
    except openai.BadRequestError:
        return False
    return all(part in family.prompt for part in ("calculate", "Works it out.", "expression"))


def _called() -> list[dict[str, Any]]:
    function = {"name": "calculate", "arguments": json.dumps(ARGUMENTS)}
    turn: dict[str, Any] = {"role": "assistant", "content": None}
    turn["tool_calls"] = [{"id": "call_0", "type": "function", "function": function}]
    return [ASK, turn, {"role": "tool", "tool_call_id": "call_0", "content": "the result is 408"}]


def _history(family: FamilyGateway) -> bool:
    """Whether a call of the past, its arguments and its result reach the prompt."""
    try:
        family.create(family.session(), ANSWER, messages=_called())
    except openai.BadRequestError:
        return False
    return all(part in family.prompt for part in ("calculate", "expression", "12 * 34", "the result is 408"))


def _reads(family: FamilyGateway) -> bool:
    """Whether a call as the template writes it comes back as one."""
    try:
        choice = family.create(family.session(), family.written_call(ARGUMENTS), tools=TOOLS).choices[0]
    except openai.BadRequestError:
        return False
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]
    return calls == [("calculate", ARGUMENTS)] and choice.finish_reason == "tool_calls"


def _thinking(family: FamilyGateway, name: str) -> str:
    """Whether thinking comes apart from the content, for families that think."""
    vocabulary, given = family.renderer.vocabulary, FAMILIES[name]
    if vocabulary.special_id("<|channel|>") is None and "<think>" not in given.template:
        return "–"
    ids = _answer(family, vocabulary.convert_tokens_to_ids(given.end), thought=THOUGHT)
    message = family.create(family.session(), ids).choices[0].message
    apart = (str(getattr(message, "reasoning_content", "")).strip(), message.content)
    return "apart" if apart == (THOUGHT, ANSWER) else "in the text"


def _extends(family: FamilyGateway, *, tools: bool) -> str:
    """Whether the next prompt begins with the very ids of the turn before it."""
    forks = [_fork(family, family.end)]
    if forks[0] is not None and not tools:
        others = sorted(family.renderer.stop_ids - {family.end})
        kept = [end for end in others if _fork(family, end) is None and _kept(family, end)]
        if kept:
            return "after " + " ".join(f"`{family.renderer.vocabulary.decode(end)}`" for end in kept)
    if tools:
        session = family.session()
        first = family.create(session, family.written_call(ARGUMENTS), tools=TOOLS).choices[0].message
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "408"}
        family.create(session, ANSWER, messages=[ASK, first, result], tools=TOOLS)
        forks.append(session.calls[1].fork_reason)
    if set(forks) == {None}:
        return "yes"
    return "no" if None not in forks else "without tools" if forks[0] is None else "with tools"


def _fork(family: FamilyGateway, end: int) -> str | None:
    """Why a question after an answer that ends with ``end`` makes a fork, if it does."""
    session = family.session()
    first = family.create(session, _answer(family, end)).choices[0].message
    family.create(session, ANSWER, messages=[ASK, first, ASK])
    return session.calls[1].fork_reason


def _kept(family: FamilyGateway, end: int) -> bool:
    """Whether ``end`` stays in the history."""
    return family.renderer.history_length([end]) == 1


def _agents(family: FamilyGateway) -> str:
    """What doctor says of them, which is what the gateway does."""
    finding = doctors_word(family.renderer)
    try:
        family.create(family.session(), ANSWER, tools=TOOLS)
        served = True
    except openai.BadRequestError:
        served = False
    assert served == (finding.level == "ok"), finding
    return "served" if served else "refused: " + re.sub(r".*its chat template (.*);.*", r"\1", finding.text)


def _write() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    _write()
