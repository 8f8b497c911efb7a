"""Which renderer a model gets: the one that reproduces its chat template on the probes, else the template in full."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agentrl.errors import ConfigError, GatewayError, near_matches, shown
from agentrl.tokens.library import (
    build,
    buildable,
    default,
    harmony_reader,
    has_date,
    known_renderers,
    reader_of_calls,
    reads_calls,
)
from agentrl.tokens.probes import CONTINUATIONS, CONVERSATIONS, Continuation, Conversation, measure, written_ends
from agentrl.tokens.renderer import Candidate, Kind, Renderer, specs
from agentrl.tokens.template import ChatTemplate, Message, Messages, Tools, plain
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import Renderer as Library
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_renderer"]

_log = logging.getLogger(__name__)


def load_renderer(
    model: PreTrainedTokenizerBase | str | Path,
    name: str = "auto",
    *,
    day: date | None = None,
    plain_text: bool = False,
) -> Renderer:
    """Return the renderer for ``model``, a tokenizer, a model folder or a Hugging Face id.

    With ``auto``, it is the renderer of the ``renderers`` package that reproduces the model's own chat template on
    probe conversations, whatever the model is called; where none does, it is the template itself, which logs a warning
    if it does more than append. ``default`` is the template itself always, and any other name is taken without regard
    to the template. A template that writes the date writes ``day``, today by default. With ``plain_text``, control
    tokens in texts of users, systems and tools are encoded as plain text.

    Raises ``ConfigError`` for an unknown name, a folder without a tokenizer and, except where a renderer is named, a
    tokenizer without a chat template.
    """
    tokenizer = _load_tokenizer(model) if isinstance(model, str | Path) else model
    origin = repr(str(tokenizer.name_or_path or "the model"))
    vocabulary = Vocabulary(tokenizer)
    by_template = name in ("auto", "default")
    renderer = _by_template(vocabulary, origin, name, day) if by_template else _named(vocabulary, origin, name, day)
    renderer.plain_text = plain_text

    def under(variables: Mapping[str, Any]) -> Renderer:
        """The renderer under variables of the template: one that reproduces it with them, if there is one."""
        way = "default" if name == "default" else "auto"
        made = _by_template(vocabulary, origin, way, day or renderer.day, variables)
        made.plain_text = plain_text
        return made

    renderer.variants.make = under
    if renderer.warning:
        _log.warning("%s", renderer.warning)
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


_FORKS = (
    "no renderer reproduces the chat template of {origin}, and it does more than append ({reasons}): such turns are "
    "rendered in full, earlier completions are encoded again, so that the token tree forks wherever the policy split a "
    "text in another way, and a turn costs time in proportion to the whole history; model.renderer names one by hand"
)


def _by_template(
    vocabulary: Vocabulary, origin: str, name: str, day: date | None, variables: Mapping[str, Any] | None = None
) -> Renderer:
    template = ChatTemplate(vocabulary, origin, day, variables)
    candidate = _best_candidate(vocabulary, template) if name == "auto" else None
    renderer = _renderer(vocabulary, template, candidate or _in_full(vocabulary, template), origin)
    if candidate is None and name == "auto" and (reasons := renderer.forks):
        renderer.warning = _FORKS.format(origin=origin, reasons="; ".join(reasons))
    return renderer


def _named(vocabulary: Vocabulary, origin: str, name: str, day: date | None) -> Renderer:
    if name not in known_renderers():
        names = ["auto", "default", *known_renderers()]
        raise ConfigError(f"model.renderer: there is no renderer {name!r}", fix=near_matches(name, names))
    template = ChatTemplate(vocabulary, origin, day) if vocabulary.chat_template else None
    try:
        candidate = build(name, vocabulary, None if template is None else template.day)
        found = None if template is None else _judged(name, vocabulary, _Expected(template))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"model.renderer: {name!r} does not work with the tokenizer of {origin}: {reason}", fix="use 'auto'"
        ) from error
    if found is not None:
        return _renderer(vocabulary, template, found, origin)
    renderer = _renderer(vocabulary, None, _trusted(candidate, vocabulary), origin)
    if template is None:
        return renderer
    renderer.warning = (
        f"model.renderer: {name!r} does not reproduce the chat template of {origin}: the policy sees conversations "
        "in another form than it will when served by its template; 'auto' follows the template"
    )
    return renderer


def _renderer(vocabulary: Vocabulary, template: ChatTemplate | None, candidate: Candidate, origin: str) -> Renderer:
    text = _OwnText(candidate.library, vocabulary).text if template is None else template.text
    written = frozenset[int]() if template is None else written_ends(template)
    return Renderer(
        vocabulary,
        template,
        candidate,
        abilities=measure(text, reads=candidate.reads),
        stop_ids=candidate.stop_ids | _file_ends(vocabulary) | written,
        text=text,
        origin=origin,
    )


_FILES = ("generation_config.json", "config.json")


def _file_ends(vocabulary: Vocabulary) -> frozenset[int]:
    """The ends of a turn that the tokenizer names, and those that the files of its model folder list, if it has one.

    Raises ``ConfigError`` for a file that cannot be read or lists something else than ids.
    """
    own = frozenset() if vocabulary.eos_token_id is None else frozenset({vocabulary.eos_token_id})
    if not vocabulary.name_or_path:
        return own
    files = [file for name in _FILES if (file := Path(str(vocabulary.name_or_path)) / name).is_file()]
    known = len(vocabulary.get_vocab())
    found = (end for file in files for end in _eos_of(file))
    return own | frozenset(end for end in found if end < known)  # An id without a token is never sampled.


def _eos_of(file: Path) -> Sequence[int]:
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", fix="save the model's own file there") from error
    ends = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
        raise ConfigError(f"{file}: eos_token_id is {shown(value, 80)}, no id and no list of them", fix="mend the file")
    return ends


def _best_candidate(vocabulary: Vocabulary, template: ChatTemplate) -> Candidate | None:
    """The most able of the renderers that reproduce ``template`` on every probe; ``None`` where none does."""
    found: list[Candidate] = []
    expected = _Expected(template)
    for name in buildable(vocabulary):
        try:
            candidate = _judged(name, vocabulary, expected)
        except Exception as error:
            # A renderer of another family fails in its own way: a missing token, a shape it does not know.
            _log.debug("renderer %s does not work with this tokenizer: %s", name, error)
            continue
        if candidate is not None:
            found.append(candidate)
    best = max(found, key=lambda part: (part.reads, part.parses, len(part.extends), part.thinking), default=None)
    return best if best is None or best.reads else _with_reader(best, template)


def _in_full(vocabulary: Vocabulary, template: ChatTemplate) -> Candidate:
    """The chat template itself, with whatever reads its tool calls."""
    candidate = default(vocabulary, "qwen3" if vocabulary.special_id("<tool_call>") is not None else None)
    return replace(_with_reader(candidate, template), closing_ids=written_ends(template))


def _with_reader(candidate: Candidate, template: ChatTemplate) -> Candidate:
    reader = reader_of_calls(template)
    return replace(candidate, reader=reader or harmony_reader(template.vocabulary), reads=reader is not None)


class _Expected:
    """What a chat template writes on the probes, which is rendered once for all candidates."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._rendered: dict[tuple[object, ...], list[int] | GatewayError] = {}

    def ids(self, messages: Sequence[Message], tools: Tools | None, *, prompt: bool = True) -> list[int]:
        """The ids of a conversation made of the messages of probes. Raises what ``ChatTemplate.render`` raises."""
        key = (*map(id, messages), id(tools), prompt)  # The probes live as long as the module: ids tell them apart.
        if key not in self._rendered:
            try:
                self._rendered[key] = self.template.render(messages, tools, prompt=prompt)
            except GatewayError as error:
                self._rendered[key] = error
        if isinstance(rendered := self._rendered[key], GatewayError):
            raise rendered
        return rendered


def _judged(name: str, vocabulary: Vocabulary, expected: _Expected) -> Candidate | None:
    """The renderer ``name`` as ``_compared`` returns it, with its own date or the template's. Raises as ``build``."""
    found = _compared(build(name, vocabulary), expected)
    if found is None and has_date(name):
        found = _compared(build(name, vocabulary, expected.template.day), expected)
    return found


def _compared(candidate: Candidate, expected: _Expected) -> Candidate | None:
    """``candidate`` with what it was seen to do, or ``None`` where it departs from the template.

    Conversations that the template itself refuses prove nothing and are left out. Thinking does not decide, because a
    template may drop it, keep it or not know it; ``Candidate.thinking`` says whether the two agree there.
    """
    verdicts = [(probe, _same(candidate, expected, probe)) for probe in CONVERSATIONS]
    plainly = [same for probe, same in verdicts if not probe.thinking and same is not None]
    if len(plainly) < 2 or not all(plainly):
        return None
    thinking = all(same is not False for probe, same in verdicts if probe.thinking)
    outcomes = [(probe.kind, _extends(candidate, expected, probe)) for probe in CONTINUATIONS]
    kinds = {kind for kind, good in outcomes if good} - {kind for kind, good in outcomes if good is False}
    parses = all(_parses(candidate, expected, probe) for probe in CONTINUATIONS if not probe.kind[1])
    return replace(
        candidate,
        thinking=thinking,
        closing_ids=frozenset(_closing(candidate, expected)),
        extends=frozenset(kinds),
        parses=parses,
        reads=reads_calls(candidate.library, expected.template, candidate.stop_ids),
    )


def _same(candidate: Candidate, expected: _Expected, probe: Conversation) -> bool | None:
    """Whether both render the probe to the same ids; ``None`` where the template refuses it."""
    try:
        wanted = expected.ids(probe.messages, probe.tools)
    except GatewayError:
        return None
    return candidate.render([plain(message) for message in probe.messages], probe.tools) == wanted


def _turn(candidate: Candidate, expected: _Expected, probe: Continuation) -> tuple[list[int], list[int], list[int]]:
    """The ids of prompt and completion, and of the whole prompt after them, as the template writes them.

    The completion is the turn in the whole conversation; where the turn has thinking that the conversation drops, it
    is the turn as the policy samples it. It is empty where no turn can be told apart.
    """
    prompt = expected.ids(probe.before, probe.tools)
    wanted = expected.ids([*probe.before, probe.turn, *probe.after], probe.tools)
    written = wanted
    if probe.kind[1]:
        alone = expected.ids([*probe.before, probe.turn], probe.tools, prompt=False)
        written = wanted if wanted[: len(alone)] == alone else alone
    if written[: len(prompt)] != prompt:
        return prompt, [], wanted
    ends = (n for n in range(len(prompt), len(written)) if written[n] in candidate.stop_ids)
    completion = written[len(prompt) : next(ends, len(prompt) - 1) + 1]
    if probe.kind[1] and probe.turn["reasoning_content"] not in expected.template.vocabulary.decode(completion):
        return prompt, [], wanted
    return prompt, completion, wanted


def _closing(candidate: Candidate, expected: _Expected) -> Iterator[int]:
    """The ids with which the template ends the turns of the probes."""
    for probe in CONTINUATIONS:
        try:
            _, completion, _ = _turn(candidate, expected, probe)
        except GatewayError:
            continue
        yield from completion[-1:]


def _extends(candidate: Candidate, expected: _Expected, probe: Continuation) -> bool | None:
    """Whether extending the prompt gives what the template gives; ``None`` where the template refuses the probe."""
    try:
        prompt, completion, wanted = _turn(candidate, expected, probe)
    except GatewayError:
        return None
    new = [plain(message) for message in probe.after]
    return bool(completion) and candidate.bridge(prompt, completion, new, probe.tools) == wanted


def _parses(candidate: Candidate, expected: _Expected, probe: Continuation) -> bool:
    try:
        prompt, completion, _ = _turn(candidate, expected, probe)
    except GatewayError:
        return True
    if not completion:
        return True
    parsed = candidate.parse(completion, probe.tools, prompt)
    calls = [(call.name, call.arguments) for call in parsed.tool_calls]
    functions = [call["function"] for call in probe.turn.get("tool_calls", [])]
    wanted = [(function["name"], json.loads(function["arguments"])) for function in functions]
    return parsed.content == probe.turn["content"] and calls == wanted


def _trusted(candidate: Candidate, vocabulary: Vocabulary) -> Candidate:
    """``candidate`` where there is no template to compare it with: what it writes is taken for the model's form."""
    extends: frozenset[Kind] = frozenset({("user", False), ("tool", False), ("tool", True)})
    reads = reads_calls(candidate.library, _OwnText(candidate.library, vocabulary), candidate.stop_ids)
    closing = frozenset(_bridged_ends(candidate, vocabulary)) or candidate.stop_ids
    return replace(candidate, thinking=True, extends=extends, reads=reads, closing_ids=closing)


def _bridged_ends(candidate: Candidate, vocabulary: Vocabulary) -> Iterator[int]:
    """The ends of turn that the library adds when it extends a completion that a token limit has cut."""
    ask, result = {"role": "user", "content": "Hi"}, {"role": "tool", "tool_call_id": "1", "content": "7"}
    for new in (ask, result):
        with suppress(Exception):  # The boundary to the library: where it cannot extend, prompts are rendered in full.
            cut = [*candidate.render([ask], None), *vocabulary.encode("Hello")]
            bridged = candidate.bridge(cut[:-1], cut[-1:], [new], None) or []
            yield from candidate.stop_ids.intersection(bridged[len(cut) : len(cut) + 1])


@dataclass(frozen=True, slots=True)
class _OwnText:
    """What a renderer writes, in the place of a chat template."""

    library: Library
    vocabulary: Vocabulary

    def text(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> str:
        given = cast(Any, [plain(message) for message in messages])
        try:
            ids = self.library.render_ids(given, tools=specs(tools), add_generation_prompt=prompt)
        except Exception as error:  # The boundary to the library: it cannot read what it does not write.
            raise GatewayError(f"the renderer refuses these messages: {error}") from error
        return self.vocabulary.decode(ids)
