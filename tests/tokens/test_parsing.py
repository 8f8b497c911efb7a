"""Completions read as messages, the policy's mistakes included."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tokens.selection import load_renderer
from agentrl.tokens.tool_calls import read_call

TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def read(chat_tokenizer):
    renderer = load_renderer(chat_tokenizer)
    prompt = renderer.render([{"role": "user", "content": "What is 12 * 34?"}], TOOLS)

    def read(text, tools=TOOLS):
        return renderer.parse(chat_tokenizer.encode(text), tools, prompt)

    return read


def call(body):
    return f"<tool_call>\n{body}\n</tool_call>"


def test_plain_text_is_content(read):
    assert read("It is 408.<|im_end|>") == {"role": "assistant", "content": "It is 408."}


def test_nothing_is_empty_content(read):
    assert read("<|im_end|>") == {"role": "assistant", "content": ""}


def test_tool_calls_come_with_json_arguments_and_ids_of_their_own(read):
    first = call('{"name": "calculate", "arguments": {"expression": "12 * 34", "exact": false, "by": "é"}}')
    second = call('{"name": "calculate", "arguments": {}}')
    message = read(f"Let me see.\n{first}\n{second}<|im_end|>")
    assert message["content"] == "Let me see."
    calls = message["tool_calls"]
    assert [each["id"] for each in calls] == ["call_0", "call_1"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"expression": "12 * 34", "exact": False, "by": "é"}
    assert calls[1]["function"] == {"name": "calculate", "arguments": "{}"}


def test_a_call_alone_has_no_content(read):
    assert read(call('{"name": "calculate", "arguments": {}}'))["content"] is None


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "calculate", "arguments": {"a": 1,}}', '{"a": 1,}'),
        ('{"name": "calculate", "arguments": {"a": 12 * 34}}', '{"a": 12 * 34}'),
        ('{"name": "calculate", "arguments": 12 * 34}', "12 * 34"),
        ('{"name": "calculate", "arguments": {"a": 1', '{"a": 1'),
        ('{"name": "calculate", argum', ""),
    ],
)
def test_broken_arguments_of_a_named_call_reach_the_agent_as_written(read, body, arguments):
    function = read(call(body))["tool_calls"][0]["function"]
    assert function == {"name": "calculate", "arguments": arguments}


@pytest.mark.parametrize(
    "arguments",
    ['{"x":"\\ud83d"}', '{ "a" : 1e2,\n"a": 1.0, "b": "\\u00e9", "c": NaN }', "[1,  2]", "7.10", '{"a": "}\\""}'],
)
@pytest.mark.parametrize("form", ['{"name": "calculate", "arguments": %s}', '{ "arguments":%s ,"name":"calculate" }'])
def test_arguments_reach_the_agent_as_the_policy_wrote_them(read, arguments, form):
    (made,) = read(call(form % arguments))["tool_calls"]
    assert made["function"] == {"name": "calculate", "arguments": arguments}


@pytest.mark.parametrize(
    ("raw", "arguments", "written"),
    [
        ('{"name": "Ann",  "arguments": {}}', {"name": "Ann", "arguments": {}}, '{"name": "Ann",  "arguments": {}}'),
        ('{"name": "greet", "parameters": {"a":  1}}', {"a": 1}, '{"a":  1}'),
        ('{"name": "greet", "parameters": {"a":  1}}', {}, '{"a":  1}'),
        ("{}", {}, "{}"),
        ('function<sep>greet\n```json\n{"a":  1.0}\n```', {"a": 1.0}, '{"a":  1.0}'),
        ("<function=greet><parameter=a>1</parameter>", {"a": "half \ud83d"}, '{"a": "half \\ud83d"}'),
        ('<function=greet><parameter=a>{"name": "Ann"}', {"a": {"name": "Ann"}}, '{"a": {"name": "Ann"}}'),
    ],
)
def test_arguments_are_found_in_whatever_form_a_family_writes_its_calls(raw, arguments, written):
    assert read_call(raw, "greet", arguments) == {"name": "greet", "arguments": written}


def test_a_call_that_is_no_json_has_no_name_in_its_arguments():
    assert read_call('<function=greet><parameter=a>{"name": "Ann", "arguments": {}') is None


@pytest.mark.parametrize(
    "body",
    ['{"name": "calculate", "arguments": null}', '{"name": "calculate"}', '{"name": "calculate", "arguments": null'],
)
def test_no_arguments_are_an_empty_object(read, body):
    assert read(call(body))["tool_calls"][0]["function"] == {"name": "calculate", "arguments": "{}"}


@pytest.mark.parametrize("rest", ['"arguments": {}}', '"arguments": {"a": }}', '"arguments": {"a'])
@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("calcul\\u0061te", "calculate"),
        ("a\\/b\\tc", "a/b\tc"),
        ("\\ud83d\\ude42", "🙂"),
        ("half \\ud83d", "half \\ud83d"),
    ],
)
def test_escapes_in_a_name_are_read_whether_the_call_parses_or_not(read, written, name, rest):
    message = read(f'<tool_call>\n{{"name": "{written}", {rest}')
    assert message["tool_calls"][0]["function"]["name"] == name


@pytest.mark.parametrize(
    "body", ["calculate 12 * 34", '{"arguments": {"name": "calculate"}}', '{"name": 5, "arguments": {}}', "[1]", ""]
)
def test_a_call_without_a_name_stays_text(read, body):
    message = read(f"See: {call(body)}<|im_end|>")
    assert "tool_calls" not in message
    assert message["content"] == f"See:\n{call(body)}"


def test_a_call_cut_short_shows_what_there_is(read):
    message = read('<tool_call>\n{"name": "calculate", "arguments": {"expr')
    assert message["tool_calls"][0]["function"] == {"name": "calculate", "arguments": '{"expr'}


def test_a_complete_call_in_an_unclosed_block_is_a_call(read):
    message = read('<tool_call>\n{"name": "calculate", "arguments": {"a": "}"}}<|im_end|>')
    assert message["tool_calls"][0]["function"] == {"name": "calculate", "arguments": '{"a": "}"}'}


def test_arguments_that_are_a_text_stay_that_text(read):
    message = read(call('{"name": "calculate", "arguments": "{\\"a\\": 1}"}'))
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


def test_where_no_tools_are_offered_a_call_is_text(read):
    text = call('{"name": "calculate", "arguments": {}}')
    assert read(text, tools=None) == {"role": "assistant", "content": text}


def test_thinking_is_kept_apart(read):
    message = read("<think>\nMultiply.\n</think>\n\nIt is 408.<|im_end|>")
    assert message == {"role": "assistant", "content": "It is 408.", "reasoning_content": "Multiply."}


@pytest.fixture(scope="module", params=["qwen3", "default"])
def renderer(request, chat_tokenizer):
    return load_renderer(chat_tokenizer, request.param)


@given(st.data())
def test_whatever_a_policy_writes_is_a_message(chat_tokenizer, renderer, data):
    marks = chat_tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>"])
    pieces = chat_tokenizer.encode('{"name": "calculate", "arguments": {"a": [1, null]}}')
    token = st.one_of(st.sampled_from(marks), st.sampled_from(pieces), st.integers(0, len(chat_tokenizer) - 1))
    message = renderer.parse(data.draw(st.lists(token, max_size=30)), TOOLS)
    assert message["role"] == "assistant"
    assert isinstance(message["content"], str) or message["tool_calls"]
    for each in message.get("tool_calls", ()):
        assert isinstance(each["function"]["arguments"], str)
        assert isinstance(each["function"]["name"], str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON, st.booleans(), st.integers(0, 12))
def test_whatever_json_a_policy_writes_an_sdk_can_send_back(chat_tokenizer, renderer, name, arguments, ascii, cut):
    """As JSON in UTF-8, which holds no half of a character; and it is the same value for whoever reads it."""
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii).encode(errors="backslashreplace")
    written = text.decode()[: -cut or None]
    message = renderer.parse(chat_tokenizer.encode(f"<tool_call>{written}</tool_call>"), TOOLS)
    assert json.loads(json.dumps(message, ensure_ascii=False).encode()) == message
    for each in [] if cut else message.get("tool_calls", ()):
        if not isinstance(arguments, str):
            assert repr(json.loads(each["function"]["arguments"])) == repr({} if arguments is None else arguments)


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_what_breaks_the_parser_is_a_call_with_what_the_policy_wrote_for_its_arguments(read, arguments):
    text = call(f'{{"name": "calculate", "arguments": {arguments}}}')
    message = read(f"<think>Hm.</think>See: {text}<|im_end|>")
    assert (message["content"], message["reasoning_content"]) == ("See:", "Hm.")
    assert message["tool_calls"][0]["function"] == {"name": "calculate", "arguments": arguments}


def test_of_two_values_for_a_key_the_first_counts(read):
    message = read(call('{"name": "f", "parameters": {"a": 1}, "arguments": {"a": 2}, "name": "g"}'))
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_thinking_that_breaks_off_has_no_white_space_around_it(read):
    assert read("<think>\nMultiply. ")["reasoning_content"] == "Multiply."
