"""Completions under a grammar, and with biased logits, by the torch engine: what they look like and what is refused."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference import models
from tests.inference.torch_backends import chunks, complete, plain_logprobs, served, serving
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from agentrl.errors import BackendError, UnsupportedSampling
from agentrl.inference.contract import Chunk, Grammar
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.sampler import LogitChanges, unpacked_anywhere
from agentrl.inference.grammars import Grammars

PROMPT = [5, 6, 7]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMA_GRAMMAR = Grammar("json_schema", json.dumps(SCHEMA))


@pytest.fixture(scope="module")
def model() -> Any:
    return models.qwen3()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.saved(model, tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def end(tokenizer: PreTrainedTokenizerFast) -> int:
    """An id that ends turns: one that the tokenizer does not know is a text to no grammar."""
    return models.VOCABULARY - 1


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Callable[..., list[Chunk]]]:
    """Completes several requests at once."""
    with asyncio.Runner() as runner:
        context = serving(folder)
        backend = runner.run(context.__aenter__())

        async def all_of(requests: list[dict[str, Any]]) -> list[Chunk]:
            return await asyncio.gather(*(complete(backend, PROMPT, **request) for request in requests))

        yield lambda *requests: runner.run(all_of(list(requests)))
        runner.run(context.__aexit__(None, None, None))


def text(tokenizer: PreTrainedTokenizerFast, chunk: Chunk, end: int) -> str:
    return tokenizer.decode([token for token in chunk.ids if token != end])


def test_a_completion_follows_its_schema_and_ends_where_it_may(ask, tokenizer, end) -> None:
    limits = {"max_tokens": 200, "stop_ids": frozenset({end}), "grammar": SCHEMA_GRAMMAR}
    found = ask(*({"seed": seed, "temperature": 1.5, **limits} for seed in range(24)))
    for chunk in found:
        assert chunk.finish == "stop"
        assert chunk.ids[-1] == end
        value = json.loads(text(tokenizer, chunk, end))
        assert value["city"] in ("Rome", "Oslo")
        assert 1 <= value["days"] <= 9
    assert len({chunk.ids for chunk in found}) > 6


@pytest.mark.parametrize("stop", [True, False])
def test_a_completion_matches_the_whole_regular_expression(stop, ask, tokenizer, end) -> None:
    stops = {"stop_ids": frozenset({end})} if stop else {}
    pattern = r"(yes|no), [0-9]{2,3}!"
    grammar = Grammar("regex", pattern)
    for chunk in ask(*({"seed": seed, "max_tokens": 60, "grammar": grammar, **stops} for seed in range(8))):
        assert chunk.finish == "stop"
        assert re.fullmatch(pattern, text(tokenizer, chunk, end))


def test_a_json_object_is_one_at_each_seed(ask, tokenizer, end) -> None:
    asked = {"max_tokens": 200, "stop_ids": frozenset({end}), "grammar": Grammar("json_object"), "temperature": 0.7}
    ended = [chunk for chunk in ask(*({"seed": seed, **asked} for seed in range(8))) if chunk.finish == "stop"]
    assert ended
    assert all(isinstance(json.loads(text(tokenizer, chunk, end)), dict) for chunk in ended)


def test_logprobs_are_of_the_allowed_tokens_at_the_requests_temperature(ask, model, tokenizer, end) -> None:
    allowed = Grammars(tokenizer, models.VOCABULARY)
    stops = frozenset({end})
    request = {"max_tokens": 60, "stop_ids": stops, "grammar": SCHEMA_GRAMMAR}
    for temperature in (0, 0.6, 1.0, 1.7):
        (chunk,) = ask(request | {"temperature": temperature, "top_logprobs": 3})
        masks = np.unpackbits(allowed.masks(SCHEMA_GRAMMAR, stops, chunk.ids), axis=1, bitorder="little")
        mask = torch.from_numpy(masks[:, : models.VOCABULARY]).bool()
        free = plain_logprobs(model, PROMPT, chunk.ids, temperature or 1.0)
        expected = free.masked_fill(~mask, -torch.inf).log_softmax(-1)
        chosen = expected.gather(1, torch.tensor(chunk.ids)[:, None])[:, 0]
        assert chunk.logprobs == pytest.approx(chosen.tolist(), abs=1e-5)
        for likeliest, row in zip(chunk.top_logprobs, mask, strict=True):
            assert len(likeliest) == min(3, int(row.sum()))
            assert all(row[token] for token, _ in likeliest)


def test_a_grammar_changes_nothing_for_the_others_in_the_batch(ask, end) -> None:
    free = [{"seed": seed, "max_tokens": 20, "temperature": 1.3} for seed in range(4)]
    alone = ask(*free)
    forced = {"max_tokens": 20, "stop_ids": frozenset({end}), "grammar": SCHEMA_GRAMMAR, "seed": 3}
    (held,) = ask(forced)
    first, *mates, last = ask(forced, *free, forced)
    assert [chunk.ids for chunk in mates] == [chunk.ids for chunk in alone]
    assert first.ids == last.ids == held.ids


def test_control_tokens_are_no_text(tmp_path: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    """Sampled inside of a string they would end a call, or a turn, in its middle."""
    tokenizer = make_tokenizer()
    grammars = Grammars(tokenizer, len(tokenizer) + 5)
    end, mark = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</tool_call>"])
    state = grammars.state(grammars.compile(Grammar("json_object")), [end])
    for token in tokenizer.encode('{"a": "'):
        assert state.allows(token)
        state.accept(token)
    marks = [token for token in tokenizer.added_tokens_decoder if state.allows(token)]
    assert marks == []
    assert not any(state.allows(token) for token in range(len(tokenizer), len(tokenizer) + 5))
    tag = {"type": "structural_tag", "format": {"type": "token", "token": mark}}
    state = grammars.state(grammars.compile(Grammar("structural_tag", json.dumps(tag))), [end])
    assert [token for token in range(len(tokenizer)) if state.allows(token)] == [mark]
    assert not state.accept(mark)
    assert [token for token in range(len(tokenizer)) if state.allows(token)] == [end]
    assert state.accept(end)


WRONG = [
    (Grammar("regex", "([a-z"), "Unclosed"),
    (Grammar("regex", "(?=a)b"), "Lookahead"),
    (Grammar("json_schema", "{"), "syntax error"),
    (Grammar("json_schema", '{"type": "objct"}'), "objct"),
    (Grammar("json_schema", '{"$ref": "#/$defs/x"}'), "x"),
    (Grammar("json_schema", '{"$ref": "https://example.com/schema"}'), "elsewhere"),
    (Grammar("json_schema", '{"type": "array", "items": {"uniqueItems": true}}'), "uniqueItems"),
    (Grammar("json_schema", '{"properties": {"a": {"not": {}}}}'), "not"),
    (Grammar("json_schema", '{"allOf": [{"type": "integer"}, {"minimum": 3}]}'), "allOf"),
    (Grammar("json_schema", '{"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": {}}}'), "minimum"),
    (Grammar("json_schema", '{"type": "string", "pattern": "a(?!b)"}'), "lookahead"),
    (Grammar("json_schema", r'{"type": "string", "pattern": "[(?=]\\\\(?=b)"}'), "lookahead"),
    (Grammar("json_schema", '{"type": "object", "patternProperties": {"^(?!x)": {}}}'), "lookahead"),
    (Grammar("json_schema", '{"type": "string", "pattern": "^a+$", "maxLength": 2}'), "maxLength"),
    (Grammar("json_schema", '{"type": "string", "format": "email", "minLength": 9}'), "minLength"),
    (Grammar("json_schema", '{"type": "string", "format": "date", "pattern": "^a$"}'), "format"),
    (Grammar("json_schema", '{"type": "number", "multipleOf": 0.5}'), "multipleOf"),
    (Grammar("json_schema", '{"type": "integer", "multipleOf": 5, "minimum": 3}'), "multipleOf"),
    (Grammar("json_schema", '{"minimum": 3}'), "without a type"),
    (Grammar("json_schema", '{"type": "string", "enum": ["a", "bb"], "maxLength": 1}'), "maxLength"),
    (Grammar("json_schema", '{"type": "string", "enum": [1, "a"]}'), "another type"),
    (Grammar("json_schema", '{"type": "integer", "const": "a"}'), "another type"),
    (Grammar("json_schema", '{"type": "object", "required": ["a"]}'), "'a'"),
    (Grammar("json_schema", '{"dependencies": {"a": ["b"]}}'), "dependencies"),
    (Grammar("structural_tag", '{"type": "structural_tag", "format": {"type": "nope"}}'), "nope"),
    (Grammar("structural_tag", '{"format": {"type": "json_schema", "json_schema": {"if": {}}}}'), "if"),
    (Grammar("regex", "a" * (1 << 20) + "b"), "characters"),
]


@pytest.mark.parametrize(("grammar", "named"), WRONG, ids=[f"{grammar.kind}-{named}" for grammar, named in WRONG])
def test_a_wrong_grammar_is_refused_with_what_is_wrong(grammar, named, ask) -> None:
    for _ in range(2):
        with pytest.raises(UnsupportedSampling, match=re.escape(named)) as refused:
            ask({"max_tokens": 2, "grammar": grammar})
        assert refused.value.fix
    assert ask({"max_tokens": 2})[0].finish == "length"


KEPT = [
    {"type": "string", "pattern": r"[(?=]\(\?!x"},
    {"type": "string", "pattern": "^a$", "minLength": 0},
    {"type": "string", "format": "date"},
    {"type": "integer", "multipleOf": 5},
    {"type": ["string", "null"], "enum": ["a", None], "description": "One of them."},
    {"type": "number", "enum": [1, 2.5]},
    {"type": "integer", "const": 2.0},
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]},
]


@pytest.mark.parametrize("schema", KEPT, ids=json.dumps)
def test_a_schema_that_masks_keep_is_taken_and_nothing_of_it_is_passed_over(schema, tokenizer, capfd) -> None:
    Grammars(tokenizer, models.VOCABULARY).compile(Grammar("json_schema", json.dumps(schema)))
    assert "Warning" not in capfd.readouterr().err


def test_one_of_several_schemas_is_any_of_them(tokenizer: PreTrainedTokenizerFast, capfd: Any) -> None:
    """And nothing is printed of it."""
    several = [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 5}, {"const": {"oneOf": 1}}]
    grammars = Grammars(tokenizer, models.VOCABULARY)
    state = grammars.state(grammars.compile(Grammar("json_schema", json.dumps({"oneOf": several}))), [])
    (token,) = tokenizer.encode("3")
    assert state.allows(token)
    for token in tokenizer.encode('{"oneOf":1}'):
        assert state.allows(token)
        state.accept(token)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_a_wrong_grammar_harms_no_other(ask, end) -> None:
    good = {"max_tokens": 60, "stop_ids": frozenset({end}), "grammar": SCHEMA_GRAMMAR}
    with pytest.raises(UnsupportedSampling):
        ask(good, {"grammar": Grammar("regex", "(")}, good)
    assert ask(good)[0].finish == "stop"


def test_a_grammar_that_takes_too_long_is_refused_at_the_deadline(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = Grammars(tokenizer, models.VOCABULARY, deadline_s=0.5)
    leave, made = threading.Event(), grammars._make_compiler

    def slow() -> Any:
        if threading.current_thread() is not threading.main_thread():
            leave.wait(20)
        return made()

    monkeypatch.setattr(grammars, "_make_compiler", slow)

    async def use() -> None:
        for _ in range(3):  # More than are compiled at once.
            with pytest.raises(UnsupportedSampling, match=r"not compiled after 0\.5 seconds"):
                await grammars.compiled(SCHEMA_GRAMMAR)
        with pytest.raises(UnsupportedSampling, match="not compiled"):
            await grammars.compiled(Grammar("json_object"))
        leave.set()
        monkeypatch.setattr(grammars, "_deadline_s", 20)
        await grammars.compiled(Grammar("regex", "a"))

    asyncio.run(use())


def test_a_grammar_that_waits_for_slow_ones_is_not_to_blame(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = Grammars(tokenizer, models.VOCABULARY, deadline_s=1.0)
    leave, made = threading.Event(), grammars._make_compiler

    def slow() -> Any:
        leave.wait(20)
        return made()

    monkeypatch.setattr(grammars, "_make_compiler", slow)
    waits = Grammar("regex", "b")

    async def use() -> None:
        slow_ones = (grammars.compiled(Grammar("regex", text)) for text in ("a", "aa"))
        *blamed, waited, again = await asyncio.gather(
            *slow_ones, grammars.compiled(waits), grammars.compiled(waits), return_exceptions=True
        )
        assert [type(error) for error in blamed] == [UnsupportedSampling] * 2
        assert [type(error) for error in (waited, again)] == [BackendError] * 2
        leave.set()
        monkeypatch.setattr(grammars, "_deadline_s", 20)
        await grammars.compiled(waits)

    asyncio.run(use())


def test_a_grammar_is_compiled_once(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(tokenizer, models.VOCABULARY)
    compiled: list[Grammar] = []
    compile_one = grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda grammar: (compiled.append(grammar), compile_one(grammar))[1])

    async def use() -> None:
        same = [Grammar("json_schema", json.dumps(SCHEMA)) for _ in range(5)]
        found = await asyncio.gather(*map(grammars.compiled, same))
        assert len(set(map(id, found))) == 1

    asyncio.run(use())
    asyncio.run(use())
    assert len(compiled) == 1


def test_grammars_that_were_not_asked_for_the_longest_are_forgotten(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = Grammars(tokenizer, models.VOCABULARY)
    first, second, third = (Grammar("regex", text) for text in ("a", "b", "c"))
    kept = grammars.compile(first)
    monkeypatch.setattr("agentrl.inference.grammars._KEPT", 2)
    grammars.compile(second)
    assert grammars.compile(first) is kept
    grammars.compile(third)
    assert grammars.compile(first) is kept
    assert list(grammars._compiled) == [third, first]
    monkeypatch.setattr("agentrl.inference.grammars._KEPT_BYTES", 1)
    grammars.compile(second)
    assert list(grammars._compiled) == [second]


def test_without_a_tokenizer_a_grammar_is_refused(model: Any, tmp_path: Path) -> None:
    async def use(backend: TorchBackend) -> None:
        assert (await backend.start()).sampling.isdisjoint({"grammar", "stop"})
        with pytest.raises(UnsupportedSampling, match="tokenizer"):
            await complete(backend, PROMPT, grammar=Grammar("json_object"))

    served(models.saved(model, tmp_path, with_tokenizer=False), use)


def test_there_are_no_masks_of_ids_that_the_grammar_does_not_allow(tokenizer: PreTrainedTokenizerFast) -> None:
    grammars = Grammars(tokenizer, models.VOCABULARY)
    assert grammars.masks(SCHEMA_GRAMMAR, [], [1]) is None
    assert grammars.masks(Grammar("regex", "("), [], [1]) is None


def test_where_nothing_is_forbidden_every_token_is_allowed(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    grammars = Grammars(tokenizer, len(tokenizer) + 3)
    assert np.unpackbits(grammars.everything, bitorder="little").nonzero()[0].tolist() == list(range(len(tokenizer)))


def test_a_stream_under_a_grammar_is_the_same_completion(folder: Path, end: int) -> None:
    async def use(backend: TorchBackend) -> None:
        asked = {"max_tokens": 60, "stop_ids": frozenset({end}), "grammar": SCHEMA_GRAMMAR, "seed": 4}
        whole = await complete(backend, PROMPT, **asked)
        streamed = await chunks(backend, PROMPT, stream=True, **asked)
        assert tuple(token for chunk in streamed for token in chunk.ids) == whole.ids
        assert streamed[-1].finish == whole.finish == "stop"

    served(folder, use)


def test_biased_logits_change_the_distribution_that_logprobs_are_of(ask, model) -> None:
    bias = ((9, 4.0), (11, -100.0), (12, 2.5))
    for temperature in (0, 0.7, 1.0):
        (chunk,) = ask({"max_tokens": 20, "logit_bias": bias, "temperature": temperature, "seed": 2})
        shift = torch.zeros(models.VOCABULARY, dtype=torch.double)
        for token, value in bias:
            shift[token] = value
        scale = temperature or 1.0
        expected = (plain_logprobs(model, PROMPT, chunk.ids, scale) + shift / scale).log_softmax(-1)
        chosen = expected.gather(1, torch.tensor(chunk.ids)[:, None])[:, 0]
        assert chunk.logprobs == pytest.approx(chosen.tolist(), abs=1e-5)
    (chunk,) = ask({"max_tokens": 8, "logit_bias": ((9, 100.0),)})
    assert chunk.ids == (9,) * 8


@pytest.mark.parametrize(
    "bias", [((-1, 1.0),), ((models.VOCABULARY, 1.0),), ((1, float("inf")),), ((1, float("nan")),)]
)
def test_a_bias_without_meaning_is_refused(bias, ask) -> None:
    with pytest.raises(UnsupportedSampling, match="logit_bias"):
        ask({"max_tokens": 2, "logit_bias": bias})


leaves = st.one_of(
    st.builds(lambda least, size: {"type": "integer", "minimum": least, "maximum": least + size},
              st.integers(-50, 50), st.integers(0, 99)),
    st.lists(st.sampled_from(["the", "answer", 'qu"ote', "é😀", "a b", ""]), min_size=1, max_size=3, unique=True).map(
        lambda values: {"enum": values}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": {"a": [1, None]}}]),
)  # fmt: skip


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.dictionaries(st.sampled_from(["the", "end", "é", "a b"]), inner, max_size=3)
    return st.builds(
        lambda properties, required: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required],
            "additionalProperties": False,
        },
        names,
        st.sets(st.sampled_from(["the", "end", "é", "a b"])),
    )


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(1, 3)),
        st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several}),
    ),
    max_leaves=5,
)


def follows(schema: dict[str, Any], value: Any) -> bool:
    """Whether ``value`` is valid, for the schemas above."""
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if "anyOf" in schema:
        return any(follows(each, value) for each in schema["anyOf"])
    match schema["type"]:
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "boolean":
            return type(value) is bool
        case "null":
            return value is None
        case "array":
            small = isinstance(value, list) and len(value) <= schema["maxItems"]
            return small and all(follows(schema["items"], each) for each in value)
    known = isinstance(value, dict) and set(schema["required"]) <= value.keys() <= schema["properties"].keys()
    return known and all(follows(schema["properties"][name], each) for name, each in value.items())


@settings(max_examples=60, deadline=None)
@given(schema=schemas, seed=st.integers(0, 2**32))
def test_whatever_is_drawn_under_a_schema_follows_it(
    schema: dict[str, Any], seed: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    """And the masks that are computed again afterwards are those that it was drawn under."""
    grammars, end = Grammars(tokenizer, models.VOCABULARY), models.VOCABULARY - 1
    grammar, source = Grammar("json_schema", json.dumps(schema)), random.Random(seed)
    state = grammars.state(grammars.compile(grammar), [end])
    ids: list[int] = []
    rows: list[np.ndarray] = []
    while end not in ids and len(ids) < 400:
        allowed = np.flatnonzero(np.unpackbits(state.row.view(np.uint8), bitorder="little")).tolist()
        written = [token for token in allowed if token == end or not tokenizer.decode([token]).isspace()]
        rows.append(state.row.copy())
        ids.append(source.choice(written or allowed))
        state.accept(ids[-1])
    masks = grammars.masks(grammar, [end], ids)
    assert masks is not None
    assert masks.tolist() == np.stack(rows).view(np.uint8)[:, : masks.shape[1]].tolist()
    if ids[-1] == end:
        assert follows(schema, json.loads(tokenizer.decode(ids[:-1])))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 5), width=st.integers(1, 100))
def test_changes_are_those_of_each_row(data: st.DataObject, rows: int, width: int) -> None:
    """Whatever the width, which need not be one of whole words."""
    logits = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    masked = data.draw(st.lists(st.integers(0, rows - 1), unique=True))
    allowed = np.random.default_rng(1).random((len(masked), width)) < 0.5
    bias = st.tuples(st.integers(0, rows - 1), st.integers(0, width - 1), st.sampled_from([-2.5, 1.0, 7.0]))
    biased = data.draw(st.lists(bias, max_size=4))
    padded = np.zeros((len(masked), -(-width // 32) * 32), bool)
    padded[:, :width] = allowed
    words = np.packbits(padded, axis=1, bitorder="little").view("<i4")
    expected = logits.clone()
    for row, token, value in biased:
        expected[row, token] += value
    for row, mask in zip(masked, allowed, strict=True):
        expected[row][~torch.from_numpy(mask)] = -torch.inf
    LogitChanges.of(list(zip(masked, words, strict=True)), biased, torch.device("cpu")).apply(logits)
    assert torch.equal(logits, expected)
    bits = torch.from_numpy(words.view(np.uint8).copy())
    assert unpacked_anywhere(bits)[:, :width].tolist() == allowed.tolist()
