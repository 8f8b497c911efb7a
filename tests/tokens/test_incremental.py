"""Completions parsed while they are sampled: what is given, joined, is the message that is read of the whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import train_tokenizer
from tests.tokens.families import FAMILIES, official, tokenizer

from agentrl.config.models import ModelSection
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins
from agentrl.tokens.incremental.decoding import Decoder, pieces_of
from agentrl.tokens.selection import load_renderer
from agentrl.tokens.vocabulary import Vocabulary

ASK = {"role": "user", "content": "What is 12 * 34?"}
TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]


GRANITE = FAMILIES["granite-4"].template.replace("<|start_of_role|>", "<|").replace("<|end_of_role|>", "|>")
BARE = (
    GRANITE.replace("'<tool_call>\\n{", "'{")
    .replace("'}\\n</tool_call>'", "'}'")
    .replace("m.tool_calls or []", "(m.tool_calls or [])[:2 - (m.tool_calls or []) | length]")
)
OWN = {
    "marks of text": ("smollm2", GRANITE.replace("<|end_of_text|>", "<|im_end|>")),
    "marks of text, byte tokens": ("mistral", GRANITE.replace("<|end_of_text|>", "</s>")),
    "no marks": ("smollm2", BARE.replace("<|end_of_text|>", "<|im_end|>")),
}
"""Families of our own: a vocabulary and a template."""
ALL = [*FAMILIES, *OWN, "tiny", "qwen3.5"]


@lru_cache
def renderer(name):
    if name == "tiny":
        return load_renderer(find_model(Plugins(), ModelSection(name="tiny")))
    if name == "qwen3.5":
        return load_renderer(train_tokenizer(official("qwen3_5_think")))
    vocabulary, template = OWN.get(name, (name, None))
    tokens = tokenizer(vocabulary)
    tokens.chat_template = template or tokens.chat_template
    return load_renderer(tokens)


@dataclass
class Message:
    """What a client has of a stream."""

    reasoning: str = ""
    content: str = ""
    calls: list = field(default_factory=list)

    def add(self, added):
        self.reasoning += added.reasoning
        self.content += added.content
        for each in added.calls:
            if each.index == len(self.calls):
                assert each.id
                assert each.name
                self.calls.append([each.id, each.name, ""])
            else:
                assert (each.id, each.name) == ("", "")
            self.calls[each.index][2] += each.arguments
        return self


def whole(message):
    functions = [(call["id"], call["function"]) for call in message.get("tool_calls", [])]
    calls = [[call_id, function["name"], function["arguments"]] for call_id, function in functions]
    return Message(message.get("reasoning_content", ""), message["content"] or "", calls)


def before_stop(vocabulary: Vocabulary, ids, stop):
    cut = vocabulary.before(ids, stop) if stop else None
    return ids if cut is None else cut[0]


def check(renderer, ids, chunks, *, tools=TOOLS, prompt=(), stop=()):
    """Feeds ``ids`` in pieces of the sizes ``chunks``, one by one where they run out."""
    parser = renderer.incremental(tools, prompt, call_ids="c", stop=stop)
    got, at, sizes = Message(), 0, iter(chunks)
    while at < len(ids):
        size = next(sizes, 1)
        got.add(parser.feed(tuple(ids[at : at + size])))
        at += size
    text = renderer.vocabulary.decode(ids)
    ended = min((each for each in stop if each in text), key=text.index, default=None)
    message = renderer.parse(before_stop(renderer.vocabulary, list(ids), ended), tools, prompt, call_ids="c")
    early = Message(got.reasoning, got.content, [list(call) for call in got.calls])
    got.add(parser.end(message))
    assert got == whole(message), (early, text)


CALLS = [
    '{"name": "calculate", "arguments": {"a": "12 * 34"}}',
    '{"name": "now", "parameters": {"é": [1, {"b": "</tool_call>"}]}}',
    '{"name": "a\\u0062", "arguments": [1], "id": "abc"}',
    '{"name": "f", "arguments": {}, "arguments": {"b": 1}, "name": "g"}',
    '{"name": "f", "arguments": null}',
    '{"name": "f", "arguments": "{}"}',
    '{"name": "f", "arguments": {"a": "}"}',
    '{"name": "calculate", "arguments": {',
    '{"arguments": {"name": "x"}}',
    '{"a": 1}',
    '"arguments": ',
    '"name": "x"',
]
TEXTS = ["It is 408. ", " \n", "\n\n", "é🙂数", "\u00a0", "STOP", "ST", "OP", "function\ncalculate\n```json\n{}\n```"]
TEXTS += [
    '"}"',
    "}",
    "}}",
    "]",
    '"',
    "\\",
    ", ",
    ":",
    "null",
    "{'a",
    "[[[",
    "9" * 5000,
    "[" * 2000,
    "<th",
    "</thi",
    "<tool",
]
MARKS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[TOOL_CALLS] [",
    "<|im_start|>assistant\n",
]
MARKS += ["analysis", "final", "commentary to=functions.calculate"]
SNIPPETS = [*CALLS, *TEXTS, *MARKS]
HEAD = '{"name": "f", "arguments": '
CORNERS = [
    *(f"<tool_call>\n{call}\n</tool_call>" for call in CALLS),
    *(f"[TOOL_CALLS] [{call}, {call}]" for call in CALLS[:4]),
    f'<tool_call>{HEAD}{{"a": "}}"}}',  # The brace of a string, at the end of a call that breaks off.
    f'<tool_call>{HEAD}{{"a": "}}}}',
    f'<tool_call>{HEAD}{{"a": 1 }} }} </tool_call> So.',
    f'<tool_call>{HEAD}{{"a": "</tool_call>"}}}}</tool_call>',
    f'<tool_call>{HEAD}{{"a": "</tool_call>", x}}}}</tool_call> So. <tool_call>{HEAD}[2]}}</tool_call>',
    f'<tool_call>{HEAD}{{"a": </tool_call> So. <tool_call>{HEAD}[2]}}</tool_call>',
    f"<tool_call>{HEAD}[1]}} So. </tool_call> \n ",
    f"<tool_call>{HEAD}[1]}}</tool_call> \n ",
    f"<tool_call>{HEAD}{'[' * 2000}</tool_call><tool_call>{HEAD}{'9' * 5000}}}</tool_call>",
    "<tool_call>calculate</tool_call>\n<tool_call>" + CALLS[0] + "</tool_call>",
    "<think>\nHm. <tool_call>" + CALLS[0] + "</tool_call> No.\n</think>\n\nSo.",
    "<think>\nHm. <tool_call>" + CALLS[0] + "</tool_call>",
    "<think>\n\n</think>\n\n<think>Hm.</think> So.",
    " \n<think>Hm.</think> \n",
    "So. <think>Hm.</think> So.",
    "<|im_start|>assistant\n<think>Hm.</think> So.",
    "<|python_tag|>" + CALLS[0],
    " " + CALLS[0],
    "Hi <|end_header_id|> So.",
    *(f"<|channel|>{head}<|message|>{{\"a\": 1}} <|end|><|start|>assistant<|channel|>final<|message|> So. "
      for head in ("analysis", "final", "commentary to=functions.f", "final to=functions.f", "o=functions.f", "other")),
    "<|start|>o=functions.f<|channel|>final<|message|>{}",
    "<|message|>to=functions.f<|end|><|start|>assistant<|channel|>final<|message|>So.",
]  # fmt: skip
"""What is easily read in another way at first than at the end, in one family or another."""


@lru_cache
def tokens(name):
    """Strategies of ids: those of marks, of texts and any."""
    made = renderer(name)
    vocabulary = made.vocabulary
    marks = sorted({*vocabulary.special_ids, *made.stop_ids, *vocabulary.added_tokens_decoder})
    known = len(vocabulary.get_vocab())
    texts = [vocabulary.encode(text) for text in (*SNIPPETS, *CORNERS)]
    split = [vocabulary.encode(text[:1]) + vocabulary.encode(text[1:]) for text in SNIPPETS if len(text) > 1]
    one = st.one_of(st.sampled_from(marks), st.integers(0, known - 1)).map(lambda token: [token])
    return st.lists(st.one_of(st.sampled_from(texts), st.sampled_from(split), one), max_size=14).map(
        lambda parts: [token for part in parts for token in part]
    )


@lru_cache
def prompts(name):
    made = renderer(name)
    think = made.vocabulary.encode("<think>\n")
    asked = made.render([ASK])
    return (tuple(asked), (*asked, *think), ())


@pytest.fixture(autouse=True)
def faults(caplog):
    caplog.set_level(logging.ERROR, "agentrl")
    yield
    assert not caplog.records


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20)
@given(data=st.data())
def test_what_is_given_is_the_message_that_is_read_of_the_whole(name, data):
    ids = data.draw(tokens(name))
    chunks = data.draw(st.lists(st.integers(1, 40), max_size=20))
    tools, prompt = data.draw(st.sampled_from([TOOLS, TOOLS, None])), data.draw(st.sampled_from(prompts(name)))
    stop = data.draw(st.sampled_from([(), (), ("STOP",), ("OP", "408. \n", "<tool")]))
    check(renderer(name), ids, chunks, tools=tools, prompt=prompt, stop=stop)


@pytest.mark.parametrize("name", ALL)
def test_what_is_easily_read_in_two_ways_is_given_once(name):
    made = renderer(name)
    for text in CORNERS:
        ids = made.vocabulary.encode(text)
        for tools in (TOOLS, None):
            for chunks in ([], [len(ids)]):
                check(made, ids, chunks, tools=tools, prompt=prompts(name)[0])


@pytest.mark.parametrize("name", ["qwen3", "tiny", "qwen2.5", "deepseek-r1"])
def test_a_mark_that_is_spelled_in_other_tokens_within_thinking(name):
    made = renderer(name)
    ids = [
        token for part in ("<think>So </th", "ink> and", " so.</think>It is.") for token in made.vocabulary.encode(part)
    ]
    check(made, ids, [], prompt=prompts(name)[0])


@pytest.mark.parametrize("name", [*FAMILIES, *OWN, "tiny"])
def test_a_text_leaves_with_its_tokens(name):
    made = renderer(name)
    text = "It is 408. The sum of 57 and 28 is 85. "  # In tokens of text only: bytes are certain when their run ends.
    parser, got = made.incremental(TOOLS, made.render([ASK])), Message()
    got.add(parser.feed(made.vocabulary.encode("<|channel|>final<|message|>" if name == "gpt-oss" else "")))
    ids = made.vocabulary.encode(text)
    for count, token in enumerate(ids, 1):
        got.add(parser.feed([token]))
        if count > 2:  # The first ones may be the beginning of a mark of thinking.
            assert (got.reasoning or got.content).rstrip() == made.vocabulary.decode(ids[:count]).rstrip()


BETWEEN = {
    **dict.fromkeys(
        ["qwen2.5", "qwen3", "granite-4", "tiny", "marks of text"], '<tool_call>{"name": "f", "arguments": '
    ),
    "gpt-oss": "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
}


@pytest.mark.parametrize("name", BETWEEN)
def test_arguments_leave_with_their_tokens(name):
    made = renderer(name)
    arguments = '{"a": "{12} * 34", "b": [1, {"c": null}]}'
    parser, got = made.incremental(TOOLS, made.render([ASK])), Message()
    got.add(parser.feed(made.vocabulary.encode(BETWEEN[name])))
    ids = made.vocabulary.encode(arguments)
    for count, token in enumerate(ids, 1):
        got.add(parser.feed([token]))
        assert got.calls[0][:2] == ["call_0", "f"]
        assert made.vocabulary.decode(ids[:count]).rstrip(" }") == got.calls[0][2].rstrip(" }")


@pytest.mark.parametrize("name", ["qwen2.5", "glm-4.5", "mistral", "deepseek-v3"])
def test_thinking_and_content_leave_before_a_call(name):
    made = renderer(name)
    call = {"mistral": "[TOOL_CALLS] ", "deepseek-v3": "<｜tool▁calls▁begin｜>"}.get(name, "<tool_call>")
    opens = "<think>" * (name != "deepseek-v3")
    parser, got = made.incremental(TOOLS, made.render([ASK])), Message()
    ids = made.vocabulary.encode(f"{opens}\nMultiply first.\n</think>\n\nSo: {call}")
    for token in ids:
        before = got.reasoning
        got.add(parser.feed([token]))
        assert not got.content or got.reasoning == before
    assert (got.reasoning, got.content) == ("Multiply first.", "So: ")
    assert not got.calls


def test_what_may_become_a_stop_string_waits():
    made = renderer("tiny")
    parser, got = made.incremental(None, made.render([ASK]), stop=("Observation:", "\n\n")), Message()
    for piece, content in [
        ("So: Obs", "So:"),
        ("ess", "So: Obsess"),
        (" Observa", "So: Obsess"),
        ("tion: 7", "So: Obsess"),
    ]:
        assert got.add(parser.feed(made.vocabulary.encode(piece))).content == content
    assert got.add(parser.end({"role": "assistant", "content": "So: Obsess"})).content == "So: Obsess"


def test_a_text_that_is_asked_for_as_such_is_all_content():
    made = renderer("tiny")
    text = "<think> So.</think> <tool_call>{} \n"
    parser = made.incremental(None, (), text=True)
    assert parser.feed(made.vocabulary.encode(text)).content == text


@pytest.mark.parametrize("name", [*FAMILIES, "tiny"])
@settings(max_examples=20)
@given(data=st.data())
def test_decoded_bit_by_bit_a_text_is_the_same(name, data):
    ids, vocabulary = data.draw(tokens(name)), renderer(name).vocabulary
    known = len(vocabulary.get_vocab())
    ids += data.draw(st.lists(st.integers(0, known + 3), max_size=20))
    pieces = pieces_of(vocabulary)
    assert pieces is not None
    decoder = Decoder(pieces)
    cut = data.draw(st.integers(0, len(ids)))
    whole = decoder.add(ids[:cut]) + "".join(decoder.add([token]) for token in ids[cut:]) + decoder.end()
    assert whole == vocabulary.decode(ids)
