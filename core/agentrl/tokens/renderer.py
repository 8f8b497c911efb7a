"""Messages to token ids and back, as one model writes them.

A ``Renderer`` joins the model's chat template with a renderer of the ``renderers`` package that reproduces it (a
``Candidate``, picked by ``agentrl.tokens.selection``). The package's renderer can extend a recorded prompt by new
messages; where none reproduces the template, ``Appending`` finds what the template appends.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from agentrl.errors import GatewayError, encodable
from agentrl.tokens.appending import OTHER_END, QUESTION, RESULTS, Appending
from agentrl.tokens.forms import Forms, Text
from agentrl.tokens.incremental import IncrementalParser, Notation, Opened, notation_of
from agentrl.tokens.template import ChatTemplate, Message, Messages, Tools, plain, thinking_of
from agentrl.tokens.tool_calls import read_call
from agentrl.tokens.variants import Variants
from agentrl.tokens.vocabulary import ControlTokens, Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse, ParsedToolCall, ToolSpec
    from renderers import Renderer as Library

    from agentrl.tokens.probes import Abilities

__all__ = [
    "SEEN",
    "Candidate",
    "Kind",
    "Reader",
    "Renderer",
    "Thinking",
    "assistant_message",
    "kind_of",
    "read",
    "specs",
]

_log = logging.getLogger(__name__)

SEEN = 256
"""How many ids at the end of a prompt are more than ``extend`` and ``parse`` look at: they look for the header of the
turn with which the prompt ends, and for the mark of its thinking. A turn then costs nothing for the history before it.
"""


class Renderer:
    """How one model writes conversations. Safe to use from any thread; it holds no conversation."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate | None,
        candidate: Candidate,
        *,
        abilities: Abilities,
        stop_ids: frozenset[int],
        text: Text,
        origin: str = "the model",
    ) -> None:
        """``template`` is ``None`` where ``candidate`` stands in its place; ``origin`` names the model in messages.

        ``text`` renders messages and tools to text, with the header of the next turn if ``prompt``.
        """
        self._template = template
        self._candidate = candidate
        self._thinking = Thinking(vocabulary)
        self._origin = origin
        self.vocabulary = vocabulary
        self.name = candidate.name
        """The renderer's name in the ``renderers`` package; ``default`` is the template in full."""
        self.warning: str | None = None
        """What this renderer costs, where a better one could exist; it has been logged."""
        self.stop_ids = stop_ids
        """Ids that end an assistant turn."""
        self._appending = None if template is None else Appending(template, stop_ids)
        self._closing_ids = candidate.closing_ids
        if self._appending is not None and candidate.in_full:
            self._closing_ids |= self._appending.closing_ids()
        self.tool_end_id: int | None = vocabulary.special_id("</tool_call>")
        """The id that ends a tool call, if the vocabulary has one."""
        self.day: date | None = template.day if template is not None and template.writes_date else None
        """The date in every prompt, if the template writes one."""
        self.abilities = abilities
        """What of tools reaches the prompt, and whether tool calls are read back."""
        self._loses_nothing = abilities.complete
        self.control = ControlTokens(vocabulary.added_ids(str(vocabulary.chat_template or "")))
        """The tokens by which its prompts are structured."""
        self.variants = Variants(origin, template.reads if template is not None else frozenset())
        """This model's renderers under other variables of its chat template."""
        self.plain_text = False
        """Whether control tokens that texts of users, systems and tools spell out are encoded as plain text."""
        self.text = text
        """Renders messages and tools to text, with the header of the next turn if ``prompt``."""
        self.thinking_marks = self._thinking.known
        """The marks around thinking: what opens it, and what closes it."""
        self.forms = Forms(text, vocabulary, self._thinking, stop_ids=stop_ids, origin=origin)
        """Makes grammars of completions."""

    @property
    def forks(self) -> tuple[str, ...]:
        """Why questions and results of tools do not extend a conversation in this template; empty where they do.

        Also empty for a renderer that reproduces the template.
        """
        if self._appending is None or not self._candidate.in_full:
            return ()
        shapes = [QUESTION, *([QUESTION._replace(tools=True), RESULTS] if self.abilities.tools else [])]
        return tuple(dict.fromkeys(reason for reason in map(self._appending.fork, shapes) if reason is not None))

    def under(self, variables: Mapping[str, Any]) -> Renderer:
        """Return the renderer of the same model whose chat template sees ``variables``.

        The first time that these are asked for it is chosen by probes, which takes a moment. Raises ``GatewayError``
        (400) for a variable that the template does not read.
        """
        return self.variants.get(variables) if variables else self

    def check(self, messages: Messages, tools: Tools | None = None, *, calls_tools: bool = True) -> None:
        """Check that tools, tool calls and tool results of a request reach the prompt.

        Raises ``GatewayError`` (400) where they would not, and, if ``calls_tools``, where the model's tool calls
        could not be read.
        """
        if not self._loses_nothing:
            self.abilities.check(self._origin, messages, tools, calls_tools=calls_tools)

    def marked(
        self, messages: Messages, tools: Tools | None, spelled: Sequence[Collection[str]] | None = None
    ) -> tuple[list[Message], Tools | None]:
        """Return messages and tools as ``render`` and ``extend`` take them, with plain text marked as such.

        ``spelled`` holds, for each message, the control tokens that the policy spelled out in other tokens. They are
        marked always; those in texts of users, systems and tools are marked if ``plain_text``.
        """
        by_policy = [frozenset[str]()] * len(messages) if spelled is None else spelled
        marked = self.control.plain(messages, by_policy, given=self.plain_text)
        return marked, self.control.plain_tools(tools) if self.plain_text else tools

    def render(self, messages: Messages, tools: Tools | None = None) -> list[int]:
        """Return the ids of the prompt for the next assistant turn, including the header of that turn.

        Raises ``GatewayError`` (400) where the chat template refuses the messages.
        """
        candidate = self._candidate
        departs = not candidate.thinking and any(map(thinking_of, messages))
        if self._template is not None and (candidate.in_full or departs):
            return self._template.render(messages, tools)
        try:
            return candidate.render([plain(message) for message in messages], tools)
        except Exception as error:  # The boundary to the library: what it cannot render, a caller has sent.
            raise GatewayError(
                f"renderer {self.name!r} cannot render these messages: {error}",
                code="invalid_messages",
                param="messages",
            ) from error

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Messages,
        tools: Tools | None = None,
        *,
        thinking: bool = False,
        history: Messages = (),
    ) -> list[int] | str:
        """Return the prompt after a completion and new ``messages``, or the reason to render it in full.

        The result begins with ``prompt_ids`` and ``completion_ids``. ``thinking`` says whether the conversation so
        far holds thinking of the policy, and ``history`` are its messages, the completion's own last; without them only
        what a renderer of the package extends can be extended. A prompt is extended only where the result equals what
        the chat template makes of the whole conversation, except for how texts are split into tokens and how the
        template would write the policy's turns.
        """
        candidate, roles = self._candidate, {message["role"] for message in messages}
        if not roles:
            return "nothing new to answer"
        if "assistant" in roles:
            return "history edited"
        if kind_of(roles, thinking) not in candidate.extends:
            if self._appending is None:
                dropped = "thinking dropped by the template"
                return dropped if thinking else f"renderer {self.name!r} does not extend here"
            if thinking and self._thinking.unclosed(completion_ids, prompt_ids):
                return "the turn was cut inside its thinking"
            appended = self._appending.ids(history, messages, tools, thinking=thinking)
            return appended if isinstance(appended, str) else self._joined(prompt_ids, completion_ids, appended)
        recorded = [*prompt_ids, *completion_ids]
        extended = candidate.bridge(prompt_ids, completion_ids, [plain(message) for message in messages], tools)
        if extended is None or extended[: len(recorded)] != recorded:
            return "the completion holds no turn to extend"
        return extended

    def render_again(
        self,
        asked_ids: Sequence[int],
        history: Messages,
        messages: Messages,
        tools: Tools | None = None,
        *,
        thinking: bool = False,
    ) -> list[int] | None:
        """Return the prompt after ``messages``, in which the template rewrites the answer to the last question alone.

        ``asked_ids`` are the ids of the recorded prompt with the last question of ``history``, whose last message is a
        turn and which may lack what came before the question, except for the system messages that open it. The result
        begins with these ids up to the header of the answer. It is ``None`` where the template rewrites more.
        """
        if self._appending is None:
            return None
        return self._appending.again(asked_ids, history, messages, tools, thinking=thinking)

    def _joined(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], appended: Sequence[int]
    ) -> list[int] | str:
        """All ids in a row; ``appended`` begins with the end of the turn, which a turn that was cut does not have."""
        ended = completion_ids[-1:] if self.stop_ids.intersection(completion_ids[-1:]) else ()
        if ended and ended[0] != appended[0]:
            return OTHER_END
        return [*prompt_ids, *completion_ids, *appended[len(ended) :]]

    def parse(
        self,
        completion_ids: Sequence[int],
        tools: Tools | None = None,
        prompt_ids: Sequence[int] = (),
        *,
        call_ids: str = "call_",
    ) -> Message:
        """Return a completion as an assistant message of the OpenAI API.

        The ids from the end of the turn on are left out. Thinking becomes ``reasoning_content``, whether the
        completion or its prompt opened it. Tool calls are read only if ``tools`` are offered; their arguments are the
        text that the policy wrote, valid JSON or not, and a call without a readable name stays in the content. Calls
        are numbered ``call_ids``0, 1, 2 … unless the model writes ids of its own. What of a completion cannot be
        parsed is content. Every text in the result can be encoded as UTF-8.
        """
        spoken = list(itertools.takewhile(lambda token: token not in self.stop_ids, completion_ids))
        # A renderer of a family reads its own thinking; the template in full may be of any family.
        apart = self._thinking.split(spoken, prompt_ids) if self._candidate.in_full else None
        thought, ids = (None, spoken) if apart is None else apart
        try:
            before = prompt_ids if apart is None else ()
            parsed = self._candidate.parse(ids, tools, before)
            silent = not (parsed.tool_calls or parsed.reasoning_content)
            if tools and silent and ids and ids[0] in self.vocabulary.special_ids:
                # Some families put a token before their calls that their templates leave out (<|python_tag|>).
                called = self._candidate.parse(ids[1:], tools, before)
                parsed, ids = (called, ids[1:]) if called.tool_calls else (parsed, ids)
            message = assistant_message(parsed, ids, self.vocabulary, tools_offered=bool(tools), call_ids=call_ids)
        except Exception as error:  # The boundary to the library: a policy may write what no parser expects.
            _log.debug("a completion of %d tokens does not parse: %s", len(ids), error)
            if (own := self.incremental(tools, prompt_ids, call_ids=call_ids)).knows:
                own.feed(spoken)
                return own.conclude()
            message = {"role": "assistant", "content": self.vocabulary.decode(ids)}
        if apart is not None and message["content"]:
            message["content"] = message["content"].lstrip()
        return message | {"reasoning_content": thought} if thought else message

    def incremental(
        self,
        tools: Tools | None,
        prompt_ids: Sequence[int],
        *,
        call_ids: str = "call_",
        stop: Collection[str] = (),
        text: bool = False,
    ) -> IncrementalParser:
        """Return a parser that gives the message of ``parse`` bit by bit while the completion is sampled.

        The arguments are those of ``parse``. ``stop`` are the strings that end the completion; ``parse`` is then
        given the ids before the one that did. With ``text``, the message is to be the text of the completion.
        """
        notation, opened = self._notation, Opened()
        if text:
            tools, notation = None, None if notation is None else notation.bare()
        elif self._candidate.in_full and (marks := self._thinking.opened(prompt_ids)) is not None:
            opened = Opened(marks=marks)
        elif notation is not None and self._candidate.prompt_thinks(self.vocabulary, prompt_ids):
            opened, notation = Opened(thinking=True), None if self._candidate.in_full else notation
        if notation is not None and notation.channels is not None:
            opened = replace(opened, header=notation.channels.header(prompt_ids))
        return IncrementalParser(notation, self.vocabulary, opened, tools=bool(tools), call_ids=call_ids, stop=stop)

    @cached_property
    def _notation(self) -> Notation | None:
        candidate = self._candidate
        marks = self._thinking.known if candidate.in_full else None
        return notation_of(candidate.reader or candidate.library, self.vocabulary, self.stop_ids, marks)

    def history_length(self, completion_ids: Sequence[int]) -> int:
        """Return how many ids of a completion the next prompt may hold.

        These are all of them, except an id at the end that ends a turn and that the template never writes there:
        the next prompt then goes on with the template's own end of turn.
        """
        last = completion_ids[-1]
        return len(completion_ids) - (last in self.stop_ids and last not in self._closing_ids)

    def thinks(self, completion_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> bool:
        """Return whether a completion holds thinking, closed or not, opened by itself or by its prompt."""
        return self._thinking.present(completion_ids, prompt_ids)


Kind = tuple[Literal["user", "tool", "system", "system and user"], bool]
"""Whose messages continue a conversation (``tool``: tools alone), and whether thinking of the policy precedes them."""


def kind_of(roles: Set[str], thinking: bool) -> Kind:
    """Return the kind of a continuation by messages of ``roles``."""
    user, system = "user" in roles, not roles.isdisjoint({"system", "developer"})
    if system:
        return ("system and user" if user else "system", thinking)
    return ("user" if user else "tool", thinking)


class Reader(Protocol):
    """The part of the package's renderers that parses completions."""

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        """Return the content, thinking and tool calls of a completion."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """One renderer of the ``renderers`` package, and where it was seen to do what the chat template does."""

    name: str
    library: Library
    stop_ids: frozenset[int]
    thinking: bool = False
    """Whether it renders turns with thinking as the template does."""
    closing_ids: frozenset[int] = frozenset()
    """The ids with which the template itself ends a turn."""
    extends: frozenset[Kind] = frozenset()
    """The kinds of continuation in which extending a prompt gives what the template gives."""
    parses: bool = False
    """Whether it parses the turns that the template writes back into the messages that they were."""
    reads: bool = False
    """Whether the template writes tool calls and all of them are read back."""
    reader: Reader | None = None
    """What parses completions, if not ``library``."""

    @property
    def in_full(self) -> bool:
        """Whether it is the chat template itself, rendered in full each turn."""
        return self.name == "default"

    def render(self, messages: Sequence[Message], tools: Tools | None) -> list[int]:
        """Return the ids of the prompt for the next turn; ``messages`` are as ``plain`` makes them."""
        return self.library.render_ids(cast(Any, messages), tools=specs(tools), add_generation_prompt=True)

    def bridge(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], messages: Sequence[Message], tools: Tools | None
    ) -> list[int] | None:
        """Return the prompt after a completion and new messages, or ``None`` where the library cannot extend it."""
        bridged = self.library.bridge_to_next_turn(
            list(prompt_ids), list(completion_ids), cast(Any, messages), tools=specs(tools)
        )
        return None if bridged is None else bridged.token_ids

    def prompt_thinks(self, vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> bool:
        """Return whether the library takes a completion of the prompt to begin within thinking."""
        from renderers.reasoning import prompt_ends_in_reasoning

        stop_ids = frozenset(self.library.get_stop_token_ids())
        return prompt_ends_in_reasoning(vocabulary, list(prompt_ids), stop_ids=stop_ids)

    def parse(self, completion_ids: list[int], tools: Tools | None, prompt_ids: Sequence[int]) -> ParsedResponse:
        """Return the parsed completion. Raises what the library raises."""
        return read(self.reader or self.library, completion_ids, tools, list(prompt_ids))


def read(reader: Reader, ids: list[int], tools: Tools | None, prompt_ids: list[int]) -> ParsedResponse:
    """Return a completion as ``reader`` parses it; arguments under the key ``parameters`` are found with any reader."""
    parsed = reader.parse_response(ids, tools=specs(tools), prompt_ids=prompt_ids)
    for call in parsed.tool_calls:
        if call.arguments == {}:  # The answer of parsers that look for ``arguments`` only.
            call.arguments = _parameters(call.raw)
    return parsed


def _parameters(raw: str) -> Any:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value.get("parameters", {}) if isinstance(value, dict) and "arguments" not in value else {}


def specs(tools: Tools | None) -> list[ToolSpec] | None:
    """Return tool definitions in the type that the package's signatures declare."""
    return cast("list[ToolSpec]", list(tools)) if tools else None


def assistant_message(
    parsed: ParsedResponse, ids: Sequence[int], vocabulary: Vocabulary, *, tools_offered: bool, call_ids: str
) -> Message:
    """Return a parsed completion of ``ids`` as an assistant message, its tool calls numbered ``call_ids``0, 1, 2 …

    A tool call that does not parse is the policy's mistake, and the agent must see it: with a readable name it is a
    call whose arguments are the text as written, else it stays in the content. Unless ``tools_offered``, every call
    stays in the content.
    """
    calls: list[dict[str, Any]] = []
    content = parsed.content
    for attempt in parsed.tool_calls:
        function = read_call(attempt.raw, attempt.name, attempt.arguments) if tools_offered else None
        if function is None:
            written = _written(attempt, ids, vocabulary)
            content = f"{content}\n{written}" if content else written
        else:
            call_id = encodable(attempt.id) if attempt.id else f"{call_ids}{len(calls)}"
            calls.append({"id": call_id, "type": "function", "function": function})
    message: Message = {"role": "assistant", "content": content if content or not calls else None}
    if thought := (parsed.reasoning_content or "").strip():
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _written(attempt: ParsedToolCall, ids: Sequence[int], vocabulary: Vocabulary) -> str:
    if attempt.token_span is None:
        return attempt.raw
    start, end = attempt.token_span
    return vocabulary.decode(ids[start:end])


_Marks = tuple[str, str]
"""The text that opens thinking, and the text that closes it."""

_USUAL: _Marks = ("<think>", "</think>")
_OTHERS: tuple[_Marks, ...] = (
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
)
_TAIL = 48
"""How many ids at the end of a prompt hold the header of a turn and a mark, however they are split."""


class Thinking:
    """Finds thinking by its marks: ``<think>`` always, those of other families where the chat template has them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        template = str(vocabulary.chat_template or "")
        self.known = (_USUAL, *(marks for marks in _OTHERS if marks[0] in template))
        """The marks around thinking: what opens it, and what closes it."""
        self._written = [
            marks for marks in self.known if marks[0] in template or vocabulary.special_id(marks[0]) is not None
        ]
        self._usual = [vocabulary.special_id(mark) for mark in _USUAL]
        self._openers = [vocabulary.special_id(opening) for opening, _ in self.known]

    def split(self, completion_ids: list[int], prompt_ids: Sequence[int]) -> tuple[str, list[int]] | None:
        """Return the thinking at the start of a completion and the ids after it; ``None`` where there is none.

        No ids come after thinking that is not closed.
        """
        text = self._vocabulary.decode(completion_ids)
        marks = self.opened(prompt_ids) or self._begun(text)
        if marks is None:
            return None
        thought, closed, _ = text.lstrip().removeprefix(marks[0]).partition(marks[1])
        return thought.strip(), self._after(completion_ids, marks[1]) if closed else []

    def unclosed(self, completion_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> bool:
        """Return whether a completion ends inside its thinking."""
        text = self._vocabulary.decode(completion_ids)
        marks = self.opened(prompt_ids) or self._begun(text)
        return marks is not None and marks[1] not in text

    def present(self, completion_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> bool:
        """Return whether a completion holds thinking, closed or not, opened by itself or by its prompt."""
        opening, closing = self._usual
        if self.opened(prompt_ids) is not None or opening in completion_ids or closing in completion_ids:
            return True
        known = self.known if None in self._usual else self.known[1:]
        text = self._vocabulary.decode(completion_ids) if known else ""
        return any(mark in text for marks in known for mark in marks)

    def expected(self, prompt_ids: Sequence[int]) -> tuple[tuple[str, str], bool] | None:
        """Return the marks around the thinking that a completion may begin with, and whether its prompt opened it.

        ``None`` where the model has no thinking, or the prompt has closed it.
        """
        if (opened := self.opened(prompt_ids)) is not None:
            return opened, True
        header = self._vocabulary.decode(prompt_ids[-_TAIL:]).rstrip()
        if not self._written or any(header.endswith(closing) for _, closing in self._written):
            return None
        return self._written[0], False

    def opened(self, prompt_ids: Sequence[int]) -> _Marks | None:
        """Return the marks of the thinking that a prompt opens for its completion."""
        tail = prompt_ids[-_TAIL:]
        if None not in self._openers and not any(token in tail for token in self._openers):
            return None  # A template never spells a mark that is a token in other tokens: no need to decode.
        header = self._vocabulary.decode(tail).rstrip()
        return next((marks for marks in self.known if header.endswith(marks[0])), None)

    def _begun(self, text: str) -> _Marks | None:
        return next((marks for marks in self.known if text.lstrip().startswith(marks[0])), None)

    def _after(self, ids: list[int], mark: str) -> list[int]:
        """The ids after the first ``mark`` in the text; an id that holds more than the mark is encoded again."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            if mark in self._vocabulary.decode(ids[:middle]):
                high = middle
            else:
                low = middle + 1
        left = self._vocabulary.decode(ids[:low]).partition(mark)[2]
        return [*self._vocabulary.encode(left), *ids[low:]]
