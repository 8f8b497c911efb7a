"""What the Responses API keeps in a session: responses that a client may ask for again, and the calls in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from agentrl.errors import GatewayError, shown
from agentrl.gateway.dialects.refusals import wrong
from agentrl.gateway.dialects.responses.items import Made

__all__ = ["Store", "Stored"]

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """A response that is kept."""

    body: Mapping[str, Any]
    """The request's body, as it is recorded."""
    answer: Mapping[str, Any]
    """Those fields of the response that the body does not tell."""
    before: Stored | None
    """The response that it continues."""

    @property
    def output(self) -> Sequence[Item]:
        """The items that were answered."""
        output: Sequence[Item] = self.answer["output"]
        return output

    @property
    def input(self) -> list[Item]:
        """The items of the request itself, each with an id and a type."""
        asked = self.body.get("input") or []
        items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        name = str(self.answer["id"]).removeprefix("resp_")
        return [_listed(item, f"{name}i{index:02x}") for index, item in enumerate(items)]

    def asked(self) -> Iterator[Sequence[Item]]:
        """The items that it answers, in their order: input and output of what came before, then its own input."""
        links = [self]
        while (before := links[-1].before) is not None:
            links.append(before)
        for each in reversed(links[1:]):
            yield each.input
            yield each.output
        yield self.input


class Store:
    """The responses and calls of one session, in the memory that the gateway keeps for a dialect."""

    def __init__(self, memory: MutableMapping[str, Any]) -> None:
        self._memory = memory

    def get(self, response: str) -> Stored:
        """The response with this id. Raises ``GatewayError`` (404) where none is kept."""
        stored = self._memory.get(response)
        if isinstance(stored, Stored):
            return stored
        raise GatewayError(f"Response with id {shown(response, 80)} not found.", status=404)

    def find(self, response: object) -> Stored | None:
        """The response with this id, if it is kept."""
        stored = self._memory.get(response) if isinstance(response, str) else None
        return stored if isinstance(stored, Stored) else None

    def keep(self, response: str, body: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Keep a response."""
        self._memory[response] = Stored(body, answer, self.find(body.get("previous_response_id")))

    def delete(self, response: str) -> None:
        """Forget a response; those that continue it still know it. Raises ``GatewayError`` (404) as ``get``."""
        self.get(response)
        self._memory.pop(response, None)

    def known(self, response: str, where: str) -> Iterator[Sequence[Item]]:
        """All items up to the end of a response. Raises ``GatewayError`` (400) where it is not kept."""
        stored = self.find(response)
        if stored is None:
            raise GatewayError(
                f"Previous response with id {shown(response, 80)} not found.",
                param=where,
                code="previous_response_not_found",
                fix="send the history as input; a response is kept in its session, unless it has store: false",
            )
        return chain(self.asked(stored), [stored.output])

    def asked(self, stored: Stored) -> Iterator[Sequence[Item]]:
        """The items that a response answers, with those that they refer to. Raises as ``referred``."""
        for items in stored.asked():
            yield [self.referred(item, "input") for item in items]

    def referred(self, item: Any, where: str) -> Any:
        """``item``, or the one that it refers to. Raises ``GatewayError`` (404) where that is not kept."""
        if not isinstance(item, dict) or item.get("type") not in (None, "item_reference") or "role" in item:
            return item
        name = item.get("id")
        if not isinstance(name, str):
            raise wrong(where, f"is neither an item nor the id of one: {shown(item, 80)}")
        for stored in list(self._memory.values()):
            if isinstance(stored, Stored):
                for each in (*stored.output, *stored.input):
                    if each.get("id") == name:
                        return each
        raise GatewayError(f"Item with id {shown(name, 80)} not found.", status=404, param=where)

    def made(self, call: str) -> Made | None:
        """What is known of the tool call with this id."""
        made = self._memory.get(f"call {call}")
        return made if isinstance(made, Made) else None

    def note(self, call: str, made: Made) -> None:
        """Remember a tool call by its id."""
        self._memory[f"call {call}"] = made


_PREFIXES: Mapping[str, str] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
}


def _listed(item: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An item of the input as the API lists it: with an id, a type and a status, and its text as content."""
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    listed = {**item, "id": item.get("id") or f"{_PREFIXES.get(kind, 'item')}_{name}", "type": kind}
    if kind == "message":
        if isinstance(said := item.get("content"), str):
            answered = item.get("role") == "assistant"
            part = {"type": "output_text", "annotations": []} if answered else {"type": "input_text"}
            listed["content"] = [{**part, "text": said}]
        listed.setdefault("status", "completed")
    return listed
