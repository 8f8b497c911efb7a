"""Messages to token ids and back, through the ``renderers`` package and the model's chat template."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError, GatewayError, near_matches
from agentrl.tokens.abilities import Abilities, measure
from agentrl.tokens.control import ControlTokens
from agentrl.tokens.ends import end_ids
from agentrl.tokens.library import Candidate, build, known_renderers
from agentrl.tokens.parsing import assistant_message
from agentrl.tokens.probes import kind_of
from agentrl.tokens.selection import best_candidate, in_full, judged
from agentrl.tokens.template import ChatTemplate, Message, Messages, Tools, plain, thinking_of
from agentrl.tokens.thinking import Thinking
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Renderer", "load_renderer"]

_log = logging.getLogger(__name__)


class Renderer:
    """How one model writes conversations. Safe from any thread; it holds no conversation."""

    def __init__(
        self, vocabulary: Vocabulary, template: ChatTemplate | None, part: Candidate, origin: str = "the model"
    ) -> None:
        self._template = template
        self._part = part
        self._thinking = Thinking(vocabulary)
        self.vocabulary = vocabulary
        self.name = part.name
        """The renderer's name in the ``renderers`` package; ``default`` is the template in full."""
        self.warning: str | None = None
        """What this renderer costs, where it is not the best that could be."""
        self.stop_ids: frozenset[int] = part.stop_ids | end_ids(vocabulary, template)
        """Ids that end an assistant turn."""
        self.tool_end_id: int | None = vocabulary.special_id("</tool_call>")
        """The id that ends a tool call, where one does."""
        self.day: date | None = template.day if template is not None and template.writes_date else None
        """The date in every prompt, where one is written."""
        self.abilities: Abilities = measure(self._text, reads=part.reads)
        """What of tools reaches the prompt, and comes back."""
        self.control = ControlTokens(vocabulary.added_ids(str(vocabulary.chat_template or "")))
        """The tokens by which its prompts are structured."""
        self.plain_text = False
        """Whether control tokens that texts of users, systems and tools spell out are plain text."""
        self._origin = origin

    def _text(self, messages: Messages, tools: Tools | None) -> str:
        if self._template is not None:
            return self._template.text(messages, tools)
        return self.vocabulary.decode(self.render(messages, tools))

    def check(self, messages: Messages, tools: Tools | None = None, *, calls_tools: bool = True) -> None:
        """Raise ``GatewayError`` (400) where tools, calls or results would not reach the prompt.

        So it does where ``calls_tools``, and calls could not be read.
        """
        self.abilities.check(self._origin, messages, tools, calls_tools=calls_tools)

    def marked(
        self, messages: Messages, tools: Tools | None, spelled: Sequence[Collection[str]] | None = None
    ) -> tuple[list[Message], Tools | None]:
        """The messages and tools as ``render`` and ``extend`` are to be given them.

        In them is marked as plain text what the policy ``spelled`` out of control tokens, message by message, and
        where texts are to be plain all that others did.
        """
        by_policy = [frozenset[str]()] * len(messages) if spelled is None else spelled
        marked = self.control.plain(messages, by_policy, given=self.plain_text)
        return marked, self.control.plain_tools(tools) if self.plain_text else tools

    def render(self, messages: Messages, tools: Tools | None = None) -> list[int]:
        """The prompt for the next assistant turn, its header included.

        Raises ``GatewayError`` (400) where the chat template refuses the messages.
        """
        strange = not self._part.thinking and any(map(thinking_of, messages))
        if self._template is not None and (self._part.in_full or strange):
            return self._template.render(messages, tools)
        try:
            return self._part.render([plain(message) for message in messages], tools)
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
    ) -> list[int] | str:
        """The prompt after a completion and new ``messages``, or why it has to be rendered in full.

        The result begins with the prompt's and the completion's own ids. ``thinking`` says whether
        thinking of the policy is among them. Extends only where that equals what the chat template
        makes of the whole conversation, encoding apart.
        """
        roles = {message["role"] for message in messages}
        if not roles:
            return "nothing new to answer"
        if "assistant" in roles:
            return "history edited"
        if self._part.in_full:
            return "the chat template is used in full each turn"
        if kind_of(roles, thinking) not in self._part.extends:
            return "thinking dropped by the template" if thinking else f"renderer {self.name!r} does not extend here"
        recorded = [*prompt_ids, *completion_ids]
        extended = self._part.bridge(prompt_ids, completion_ids, [plain(message) for message in messages], tools)
        if extended is None or extended[: len(recorded)] != recorded:
            return "the completion holds no turn to extend"
        return extended

    def parse(
        self,
        completion_ids: Sequence[int],
        tools: Tools | None = None,
        prompt_ids: Sequence[int] = (),
        *,
        call_ids: str = "call_",
    ) -> Message:
        """The assistant message that a completion is, in the OpenAI API's shape.

        What ends the turn is no part of it, and thinking is apart, whether the completion or its prompt
        opened it. Tool arguments are the text that the policy wrote, whether it parses or not; a call whose
        name cannot be read stays in the content, and so do all where no ``tools`` are offered. Ids of tool
        calls are ``call_ids`` and a number, unless the model writes its own. A completion that cannot be
        parsed at all is text. Whatever it is, it can be written as UTF-8.
        """
        spoken = list(itertools.takewhile(lambda token: token not in self.stop_ids, completion_ids))
        # Renderers of families read their own thinking; the template in full may be of any family.
        apart = self._thinking.split(spoken, prompt_ids) if self._part.in_full else None
        thought, ids = (None, spoken) if apart is None else apart
        try:
            before = prompt_ids if apart is None else ()
            parsed = self._part.parse(ids, tools, before)
            if tools and not parsed.tool_calls and ids and ids[0] in self.vocabulary.special_ids:
                # Some families put a token before their calls that their templates leave out (<|python_tag|>).
                called = self._part.parse(ids[1:], tools, before)
                parsed, ids = (called, ids[1:]) if called.tool_calls else (parsed, ids)
            message = assistant_message(parsed, ids, self.vocabulary, tools_offered=bool(tools), call_ids=call_ids)
        except Exception as error:  # The boundary to the library: a policy may write what no parser foresaw.
            _log.debug("a completion of %d tokens does not parse: %s", len(ids), error)
            message = {"role": "assistant", "content": self.vocabulary.decode(ids)}
        if apart is not None and message["content"]:
            message["content"] = message["content"].lstrip()
        return message | {"reasoning_content": thought} if thought else message

    def shown(self, completion_ids: Sequence[int]) -> int:
        """How many ids of a completion the next prompt may hold: all but an end of turn that the template never writes.

        Such an end ends the turn as any does, and the conversation goes on as if the template's own had stood there.
        """
        last = completion_ids[-1]
        return len(completion_ids) - (last in self.stop_ids and last not in self._part.closing_ids)

    def thinks(self, completion_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> bool:
        """Whether a completion holds thinking, closed or not, that it or its prompt has opened."""
        return self._thinking.present(completion_ids, prompt_ids)


def load_renderer(
    model: PreTrainedTokenizerBase | str | Path,
    name: str = "auto",
    *,
    day: date | None = None,
    plain_text: bool = False,
) -> Renderer:
    """The renderer for a tokenizer or a model folder.

    ``auto`` takes the renderer of the ``renderers`` package that reproduces the model's own chat template
    on probe conversations, whatever the model is called, and else renders with the template in full each
    turn. Templates that write the date write ``day``, by default today's. Raises ``ConfigError`` for an
    unknown name, a folder without a tokenizer and, except where a renderer is named outright, a tokenizer
    without a chat template. With ``plain_text`` control tokens in texts of users, systems and tools are text.
    """
    tokenizer = _load_tokenizer(model) if isinstance(model, str | Path) else model
    origin = repr(str(tokenizer.name_or_path or "the model"))
    vocabulary = Vocabulary(tokenizer)
    by_template = name in ("auto", "default")
    renderer = _by_template(vocabulary, origin, name, day) if by_template else _named(vocabulary, origin, name, day)
    renderer.plain_text = plain_text
    if renderer.warning:
        _log.warning("%s", renderer.warning)
    return renderer


def _by_template(vocabulary: Vocabulary, origin: str, name: str, day: date | None) -> Renderer:
    template = ChatTemplate(vocabulary, origin, day)
    part = best_candidate(vocabulary, template) if name == "auto" else None
    renderer = Renderer(vocabulary, template, part or in_full(vocabulary, template), origin)
    if part is None and name == "auto":
        renderer.warning = _IN_FULL.format(origin=origin)
    return renderer


_IN_FULL = (
    "the chat template of {origin} is rendered in full each turn, as no renderer reproduces it: earlier completions "
    "are encoded again, so that the token tree forks wherever the policy split a text in another way, and a turn "
    "costs time in proportion to the whole history; model.renderer names one by hand"
)


def _named(vocabulary: Vocabulary, origin: str, name: str, day: date | None) -> Renderer:
    if name not in known_renderers():
        names = ["auto", "default", *known_renderers()]
        raise ConfigError(f"model.renderer: there is no renderer {name!r}", fix=near_matches(name, names))
    template = ChatTemplate(vocabulary, origin, day) if vocabulary.chat_template else None
    try:
        part = build(name, vocabulary, None if template is None else template.day)
        found = None if template is None else judged(name, vocabulary, template)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"model.renderer: {name!r} does not work with the tokenizer of {origin}: {reason}", fix="use 'auto'"
        ) from error
    if found is not None:
        return Renderer(vocabulary, template, found, origin)
    renderer = Renderer(vocabulary, None, part.trusted(vocabulary), origin)
    if template is None:
        return renderer
    renderer.warning = (
        f"model.renderer: {name!r} does not reproduce the chat template of {origin}: the policy sees conversations "
        "in another form than it will when served by its template; 'auto' follows the template"
    )
    return renderer


def _load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model {str(folder)!r} has no tokenizer that loads: {reason}",
            fix="give a bundled name, a Hugging Face folder with its tokenizer.json, or a Hugging Face id",
        ) from error
