"""Grammars: compiled by xgrammar for one vocabulary, remembered, and turned into masks of the tokens that they allow.

A mask is packed, one bit a token: token ``t`` is bit ``t % 32`` of word ``t // 32``. Ids that are no text (control
tokens, padding) are allowed only where a structural tag names them, and stop ids only where the grammar may end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from agentrl.errors import BackendError, UnsupportedSampling, one_line, shortened, shown
from agentrl.inference.adapter_folder import tokenizer_folder
from agentrl.inference.contract import Grammar
from agentrl.inference.model_folder import vocabulary_of
from agentrl.loops import Threads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from xgrammar import CompiledGrammar, GrammarCompiler, TokenizerInfo

__all__ = ["GrammarState", "Grammars", "available", "grammars_of"]

Words = npt.NDArray[np.int32]
"""A packed mask."""
Bits = npt.NDArray[np.uint8]
"""A mask packed in bytes."""

_KEPT = 256
"""Compiled grammars that are remembered, at most."""
_KEPT_BYTES = 1 << 28
"""How much memory they may take; one takes kilobytes, or megabytes where the vocabulary or the schema is large."""
_DEADLINE_S = 20.0
"""Seconds that a grammar may take to compile: ordinary ones take milliseconds."""
_LONGEST = 1 << 20
"""Characters of a grammar."""
_AT_ONCE = 2
"""Grammars that are compiled at once; xgrammar splits each over its own threads."""
_SPACE = 16
"""White space between two parts of JSON, at most: a model that never closes an object must not fill up on it."""
_NO_TEXT = b"\xff"
"""A byte that no UTF-8 text holds, at the start of what is no text to a grammar."""


def available() -> bool:
    """Returns whether xgrammar is installed."""
    return importlib.util.find_spec("xgrammar") is not None


def grammars_of(folder: Path) -> Grammars | None:
    """Returns the grammars of the model in a Hugging Face folder; ``None`` where xgrammar is not installed."""
    return Grammars(tokenizer_folder(folder), vocabulary_of(folder)) if available() else None


class Grammars:
    """Compiles grammars for one model. Safe to use from any thread and event loop."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | Path, vocabulary: int, *, deadline_s: float = _DEADLINE_S
    ) -> None:
        """``tokenizer`` may be the folder of one, which is loaded when it is needed first. ``vocabulary`` may be more
        than it knows."""
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary
        """How many ids the model's logits have."""
        self._deadline_s = deadline_s
        self._threads = Threads("agentrl-grammars", _AT_ONCE)
        self._compiled: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()
        self._slow: set[Grammar] = set()
        """Those whose compilation has missed the deadline, and still runs."""
        self._since: dict[Grammar, float] = {}
        """When the compilations that run now have begun."""
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._compiler: GrammarCompiler | None = None

    async def compiled(self, grammar: Grammar) -> CompiledGrammar:
        """Returns ``grammar`` compiled, in a thread of its own.

        Raises ``UnsupportedSampling`` for one that is wrong, that xgrammar cannot enforce in every part, or that takes
        too long, and ``BackendError`` for one that waited too long for others.
        """
        call = self._begun(grammar)
        if not call.done() and grammar not in self._slow:
            waiter = asyncio.wrap_future(call)
            waiter.add_done_callback(_heard)
            await asyncio.wait([waiter], timeout=self._deadline_s)
        # So that another may be compiled meanwhile: a thread that has begun cannot be stopped.
        running = not call.done() and not call.cancel()
        # One that has just begun has waited for others.
        waited = running and grammar not in self._slow and self._runs_s(grammar) < self._deadline_s / 2
        if waited or call.cancelled():
            raise BackendError(
                f"other grammars were being compiled for {self._deadline_s:g} seconds", fix="send the request again"
            )
        if running:
            self._slow.add(grammar)
            what = f"is not compiled after {self._deadline_s:g} seconds"
            raise _refused(grammar, what, fix="make it smaller: fewer alternatives, lower limits of repetition")
        self._slow.discard(grammar)
        return self._result(call)

    def _runs_s(self, grammar: Grammar) -> float:
        """For how many seconds the compilation of ``grammar`` has run."""
        return time.monotonic() - self._since.get(grammar, time.monotonic())

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Returns ``grammar`` compiled, in this thread, without a deadline. Raises as ``compiled`` does."""
        return self._result(self._begun(grammar))

    def state(self, compiled: CompiledGrammar, stop_ids: Iterable[int]) -> GrammarState:
        """Returns where a completion begins whose text is to follow the grammar; ``stop_ids`` end it.

        Raises ``UnsupportedSampling`` where it cannot begin with any token of the vocabulary.
        """
        state = GrammarState(compiled, sorted(stop_ids), self.vocabulary)
        if not state.row.any():
            raise UnsupportedSampling("no token of the vocabulary begins as the grammar demands", fix="change it")
        return state

    @cached_property
    def everything(self) -> Bits:
        """``[⌈vocabulary / 8⌉]``: the mask where a grammar forbids nothing. It leaves out ids that are no token."""
        tag = {"type": "structural_tag", "format": {"type": "any_tokens"}}
        row = self.state(self.compile(Grammar("structural_tag", json.dumps(tag))), ()).row
        bits: Bits = self._packed(row[None])[0]
        return bits

    def masks(self, grammar: Grammar, stop_ids: Iterable[int], ids: Sequence[int]) -> Bits | None:
        """Returns which tokens were allowed at each position of a completion ``ids``, as ``Targets.masks`` packs them.

        The result has the shape (ids, ⌈vocabulary / 8⌉). ``None`` where the grammar does not compile, or does not
        allow ``ids``.
        """
        try:
            state = self.state(self.compile(grammar), stop_ids)
        except UnsupportedSampling:
            return None
        rows = np.empty((len(ids), len(state.row)), np.int32)
        for row, token in zip(rows, ids, strict=True):
            row[:] = state.row
            if not state.allows(token):
                return None
            state.accept(token)
        return self._packed(rows)

    def _packed(self, rows: npt.NDArray[np.int32]) -> Bits:
        packed: Bits = rows.astype("<i4").view(np.uint8)[:, : -(-self.vocabulary // 8)]
        return packed

    def _begun(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """The compilation of ``grammar``, which may have ended long ago."""
        with self._lock:
            call = self._compiled.get(grammar)
            if call is None or call.cancelled():
                # In a context of its own, because it goes on when the agent that needs it first has ended.
                call = Context().run(self._threads.submit, self._timed, grammar)
                self._forget()
                self._compiled[grammar] = call
            self._compiled.move_to_end(grammar)
            return call

    def _forget(self) -> None:
        """Make room for one more grammar: forget those that were not asked for the longest."""
        sizes = {grammar: _size(call) for grammar, call in self._compiled.items()}
        while len(self._compiled) >= _KEPT or sum(sizes.values()) > _KEPT_BYTES:
            grammar, _ = self._compiled.popitem(last=False)
            del sizes[grammar]

    def _result(self, call: Future[CompiledGrammar]) -> CompiledGrammar:
        try:
            return call.result()
        except UnsupportedSampling as error:  # A new one each time: every reader adds its own traceback.
            raise UnsupportedSampling(error.message, fix=error.fix) from error.__cause__

    def _timed(self, grammar: Grammar) -> CompiledGrammar:
        self._since[grammar] = time.monotonic()
        try:
            return self._compile(grammar)
        finally:
            self._since.pop(grammar, None)

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        if len(grammar.text) > _LONGEST:
            raise _refused(grammar, f"has {len(grammar.text)} characters, and at most {_LONGEST} are taken")
        for keyword in _not_enforced(grammar):
            raise _refused(
                grammar, f"asks for {keyword}, which no mask can enforce", fix="leave that out of the schema"
            )
        compiler = self._make_compiler()
        try:
            if grammar.kind == "regex":
                return compiler.compile_regex(grammar.text)
            text = json.dumps(_any_of(json.loads(grammar.text))) if '"oneOf"' in grammar.text else grammar.text
            if grammar.kind == "structural_tag":
                return compiler.compile_structural_tag(text)
            schema = text if grammar.kind == "json_schema" else '{"type": "object"}'
            return compiler.compile_json_schema(schema, max_whitespace_cnt=_SPACE)
        except Exception as error:  # The boundary to the library, which raises RuntimeError for whatever is wrong.
            raise _refused(grammar, f"does not compile: {_reason(error)}") from error

    def _make_compiler(self) -> GrammarCompiler:
        import xgrammar

        with self._building:
            if self._compiler is None:
                try:
                    info = _tokenizer_info(_loaded(self._tokenizer), self.vocabulary)
                except Exception as error:
                    raise UnsupportedSampling(
                        f"grammars do not work with this model's tokenizer: {_reason(error)}",
                        fix="leave grammars out: response formats, forced tool calls and strict tools",
                    ) from error
                self._compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
            return self._compiler


class GrammarState:
    """Where one completion is in its grammar. Not safe for threads."""

    def __init__(self, compiled: CompiledGrammar, stop_ids: Sequence[int], vocabulary: int) -> None:
        import xgrammar

        # Without stop ids it ends by the tokenizer's own, which stands beyond the vocabulary.
        self._matcher = xgrammar.GrammarMatcher(compiled, override_stop_tokens=list(stop_ids) or None)
        self._rows = np.zeros((1, vocabulary // 32 + 1), np.int32)
        self._vocabulary = vocabulary
        self._fill()

    @property
    def row(self) -> Words:
        """``[⌈vocabulary / 32⌉]``: the mask of the next token. It changes with ``accept``."""
        return self._rows[0, : -(-self._vocabulary // 32)]

    def allows(self, token: int) -> bool:
        """Returns whether ``token`` may come next."""
        return 0 <= token < self._vocabulary and bool(self._rows[0, token // 32] >> (token % 32) & 1)

    def accept(self, token: int) -> bool:
        """Take the next token, one that is allowed. Returns whether the completion ends with it.

        Raises ``BackendError`` where it is not complete and no token can follow: the vocabulary cannot write it.
        """
        self._matcher.accept_token(token)
        if self._matcher.is_terminated():
            return True
        self._fill()
        if self.row.any():
            return False
        if self._matcher.is_completed():
            return True
        raise BackendError("no token of the vocabulary goes on as the grammar demands", fix="change the grammar")

    def _fill(self) -> None:
        self._matcher.fill_next_token_bitmask(self._rows)
        # The row has a bit more than the vocabulary at least: that of the stop id beyond it, and of nothing else.
        self._rows[0, self._vocabulary // 32] &= (1 << (self._vocabulary % 32)) - 1


def _loaded(tokenizer: PreTrainedTokenizerBase | Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not isinstance(tokenizer, Path):
        return tokenizer
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(tokenizer, local_files_only=True))


def _tokenizer_info(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> TokenizerInfo:
    """The vocabulary as xgrammar reads it: with one id more, which ends a text where a request has no stop ids.

    What marks structure (a special token, or an added one that the chat template writes) is given a text that no
    grammar allows, or a text in JSON could hold the end of a turn.
    """
    import xgrammar

    known = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary + 1, stop_token_ids=[vocabulary])
    texts = known.decoded_vocab
    texts[vocabulary] = b""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        structure = token.special or (token.content in template and not token.content.isspace())
        if structure and token_id < vocabulary:
            texts[token_id] = _NO_TEXT + token.content.encode()
    return xgrammar.TokenizerInfo(
        texts,
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=vocabulary + 1,
        stop_token_ids=[vocabulary],
        add_prefix_space=known.add_prefix_space,
    )


def _size(call: Future[CompiledGrammar]) -> int:
    """The bytes that a compiled grammar takes; 0 while it is not there."""
    if not call.done() or call.cancelled() or call.exception() is not None:
        return 0
    return int(call.result().memory_size_bytes)


def _heard(future: asyncio.Future[Any]) -> None:
    """Take note of a future's error, which asyncio would otherwise report as lost."""
    if not future.cancelled():
        future.exception()


def _refused(grammar: Grammar, what: str, *, fix: str = "mend it, or leave it out") -> UnsupportedSampling:
    # A structural tag is what the gateway has made of a request, whose author has never seen it.
    given = f" {shown(grammar.text, 120)}" if grammar.text and grammar.kind != "structural_tag" else ""
    return UnsupportedSampling(f"the {_NAMES[grammar.kind]}{given} {what}", fix=fix)


_NAMES = {
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "regex": "regular expression",
    "structural_tag": "form",
}
_WHERE = re.compile(r"^(\[[\d:]+\] \S+ )?(Check failed: \(.*?\) is false: )?")
"""The time, the source file and the check at the beginning of xgrammar's messages."""


def _reason(error: Exception) -> str:
    message = one_line(error)
    return shortened(_WHERE.sub("", message).strip() or message or type(error).__name__, 300)


_UNENFORCED = (
    *("contains", "dependencies", "dependentRequired", "dependentSchemas", "dynamicRef", "else", "if", "maxContains"),
    *("minContains", "not", "recursiveRef", "then", "uniqueItems", "unevaluatedItems", "unevaluatedProperties"),
)
"""Keywords that xgrammar passes over."""
_NEUTRAL: Mapping[str, object] = {"uniqueItems": False, "unevaluatedItems": True, "unevaluatedProperties": True}
_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema"}
"""Keywords that say nothing about what is valid."""
_BESIDE = {
    "$ref": _NOTES | {"$defs", "definitions"},
    "allOf": _NOTES | {"$defs", "definitions"},
    "anyOf": _NOTES | {"$defs", "definitions", "discriminator"},
    "oneOf": _NOTES | {"$defs", "definitions", "discriminator"},
}
"""Keywords beside which xgrammar passes over others, and those that may stand there."""
_LENGTHS = ("minLength", "maxLength")
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_TYPED = ("pattern", *_LENGTHS, *_RANGE, "multipleOf")
"""Keywords that xgrammar passes over in a schema without a type, or where the values are listed."""
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_LOOKAHEAD = re.compile(r"(?:\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[^\\\[(]|\((?!\?[=!]))*+\(\?[=!]", re.DOTALL)
"""A regular expression up to its first lookahead, which is neither escaped nor in brackets."""


def _not_enforced(grammar: Grammar) -> Iterator[str]:
    """What a schema in the grammar asks for and xgrammar would pass over. Nothing for what is no JSON."""
    if grammar.kind not in ("json_schema", "structural_tag"):
        return
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(grammar.text)
        schemas = [value] if grammar.kind == "json_schema" else _schemas_in(value)
        for schema in schemas:
            yield from _unenforced(schema)


def _any_of(value: Any) -> Any:
    """``value`` with ``anyOf`` in the place of ``oneOf``, as which xgrammar reads it, and says so on stderr."""
    if isinstance(value, dict):
        return {
            "anyOf" if name == "oneOf" else name: inner if name in ("const", "enum", "default") else _any_of(inner)
            for name, inner in value.items()
        }
    return [_any_of(inner) for inner in value] if isinstance(value, list) else value


def _schemas_in(tag: Any) -> Iterator[Any]:
    """The JSON schemas in a structural tag."""
    if isinstance(tag, dict):
        for name, value in tag.items():
            if name == "json_schema":
                yield value
            else:
                yield from _schemas_in(value)
    elif isinstance(tag, list):
        for value in tag:
            yield from _schemas_in(value)


def _unenforced(schema: Any) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    for name in _UNENFORCED:
        if name in schema and schema[name] != _NEUTRAL.get(name, ...):
            yield f"{name!r}"
    for name, beside in _BESIDE.items():
        if name in schema and (others := sorted(schema.keys() - beside - {name})):
            yield f"{others[0]!r} beside {name!r}"
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        yield "'allOf' of several schemas"
    if isinstance(reference := schema.get("$ref"), str) and not re.match(r"#(/|$)", reference):
        yield f"the schema elsewhere {reference!r}"
    yield from _unenforced_values(schema)
    for name, value in schema.items():
        if name in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
            for inner in value.values():
                yield from _unenforced(inner)
        elif name in ("items", "additionalProperties", "propertyNames", "additionalItems"):
            yield from _unenforced(value)
        elif name in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
            for inner in value:
                yield from _unenforced(inner)


def _unenforced_values(schema: Mapping[str, Any]) -> Iterator[str]:
    """What xgrammar would pass over in the keywords of one type, as far as their values have the right types."""
    given = schema.get("type")
    kinds = given if isinstance(given, list) else [given]
    listed = next((name for name in ("const", "enum") if name in schema), None)
    if listed or given is None:
        why = f"beside {listed!r}" if listed else "without a type"
        yield from (f"{name!r} {why}" for name in _TYPED if name in schema)
    allowed = [_TYPES[kind] for kind in kinds if isinstance(kind, str) and kind in _TYPES]
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed and isinstance(values, list):
        yield from (f"{value!r} of another type" for value in values if not any(test(value) for test in allowed))
    patterns = schema.get("patternProperties")
    for pattern in (schema.get("pattern"), *(patterns if isinstance(patterns, dict) else ())):
        if isinstance(pattern, str) and _LOOKAHEAD.match(pattern):
            yield f"a lookahead in {shown(pattern, 80)}"
    text = [name for name in ("pattern", "format") if name in schema]
    beside = [name for name in _LENGTHS if schema.get(name, 0) != 0]
    if text and (others := text[1:] + beside):
        yield f"{others[0]!r} beside {text[0]!r}"
    if "multipleOf" in schema:
        if "number" in kinds:
            yield "'multipleOf' of numbers that are not integers"
        yield from (f"'multipleOf' beside {name!r}" for name in _RANGE if name in schema)
    required, properties = schema.get("required", []), schema.get("properties", {})
    if isinstance(required, list) and isinstance(properties, dict):
        yield from (f"the property {name!r} without a schema" for name in required if name not in properties)
