"""Grammars of completions in each family's own form: what the template writes keeps to them, other things do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.tokens import families
from tests.tokens.families import FAMILIES, official

from agentrl.errors import GatewayError
from agentrl.inference.contract import Grammar
from agentrl.inference.grammars import Grammars
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

ASK = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
KNOWN = ("qwen2.5", "qwen3", "llama-3.1", "llama-3.2", "mistral", "granite-4", "gpt-oss", "deepseek-v3", "deepseek-r1")
SEVERAL = ("qwen2.5", "qwen3", "granite-4", "deepseek-v3")
SPACED = ("mistral",)
"""Families whose tokenizer writes a space after a control token that no text has."""


def tool(name: str, *, strict: bool = False, parameters: dict[str, Any] = SCHEMA) -> dict[str, Any]:
    function = {"name": name, "description": "Looks it up.", "parameters": parameters, "strict": strict}
    return {"type": "function", "function": function}


TOOLS = [tool("weather"), tool("time_of_day")]


class Family:
    """A renderer, and the masks of grammars over its tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.renderer: Renderer = load_renderer(tokenizer)
        self.grammars = Grammars(tokenizer, len(tokenizer))
        self.prompt = self.renderer.render([ASK], TOOLS)

    def grammar(self, tools: list[dict[str, Any]] | None = TOOLS, **asked: Any) -> Grammar:
        grammar = self.renderer.forms.grammar(self.prompt, tools, **asked)
        assert grammar is not None
        return grammar

    def end(self, ids: list[int]) -> list[int]:
        """``ids`` up to the end of the turn."""
        ends = [at for at, token in enumerate(ids) if token in self.renderer.stop_ids]
        return ids[: ends[0] + 1] if ends else [*ids, min(self.renderer.stop_ids)]

    def ids(self, text: str) -> list[int]:
        return self.end(self.renderer.vocabulary.encode(text))

    def written(self, *calls: tuple[str, dict[str, Any]]) -> list[int]:
        """A turn of calls as the template writes it, thinking closed where the prompt opens it."""
        made = [
            {"id": f"call0000{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for n, (name, given) in enumerate(calls)
        ]
        template = self.renderer._template
        assert template is not None
        prompt = template.text([ASK], TOOLS)
        whole = template.text([ASK, {"role": "assistant", "content": None, "tool_calls": made}], TOOLS, prompt=False)
        if whole.startswith(prompt):
            return self.ids(whole.removeprefix(prompt))
        bare = prompt.rstrip().removesuffix("<think>")
        assert whole.startswith(bare)
        return self.ids("A thought.\n</think>\n\n" + whole.removeprefix(bare))

    def refused(self, grammar: Grammar, ids: list[int]) -> str | None:
        """The text up to the first id that the grammar does not allow; ``None`` where it allows all."""
        state = self.grammars.state(self.grammars.compile(grammar), self.renderer.stop_ids)
        for at, token in enumerate(ids):
            if not state.allows(token):
                return self.renderer.vocabulary.decode(ids[: at + 1])
            state.accept(token)
        return None


@pytest.fixture(scope="module")
def family() -> Any:
    made: dict[str, Family] = {}

    def family(name: str) -> Family:
        if name not in made:
            made[name] = Family(families.tokenizer(name))
        return made[name]

    return family


@pytest.mark.parametrize("name", sorted(set(KNOWN) - set(SPACED)))
def test_a_forced_call_is_written_as_the_template_writes_it(name: str, family: Any) -> None:
    model = family(name)
    forced = model.grammar(must_call=("weather", "time_of_day"))
    assert model.refused(forced, model.written(("weather", {"city": "Rome"}))) is None
    assert model.refused(forced, model.written(("time_of_day", {"any": [1, {"thing": None}]}))) is None
    only = model.grammar(must_call=("weather",))
    assert model.refused(only, model.written(("weather", {"city": "Rome"}))) is None
    assert model.refused(only, model.written(("time_of_day", {"city": "Rome"})))
    text = "A thought.</think>It is late." if model.renderer.forms._thinking(model.prompt) else "It is late."
    assert model.refused(forced, model.ids(text))


@pytest.mark.parametrize("name", KNOWN)
def test_a_forced_call_is_read_back(name: str, family: Any) -> None:
    """The shortest completion that the grammar allows: whatever it forces, the parser knows it for a call."""
    model = family(name)
    fixed = [tool("weather", strict=True, parameters={"type": "object", "properties": {"city": {"const": "Rome"}}})]
    ids = _shortest(model, model.grammar(fixed, must_call=("weather",), one_call=True))
    message = model.renderer.parse(ids, TOOLS, model.prompt)
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) in ({}, {"city": "Rome"})
    assert not message["content"]


def _shortest(model: Family, grammar: Grammar) -> list[int]:
    """A completion without thinking, in long tokens."""
    vocabulary = model.renderer.vocabulary
    state = model.grammars.state(model.grammars.compile(grammar), model.renderer.stop_ids)
    closing, *opening = (vocabulary.special_id(mark) for mark in ("</think>", "<think>", "<|channel|>"))
    ids: list[int] = []
    while len(ids) < 300:
        allowed = [token for token in range(len(model.tokenizer)) if state.allows(token)]
        if ends := model.renderer.stop_ids.intersection(allowed):
            return [*ids, min(ends)]
        begun = [token for token in allowed if ids or token not in opening]
        longest = max(begun, key=lambda token: len(vocabulary.decode([token]).strip()))
        ids.append(closing if closing in allowed else longest)
        state.accept(ids[-1])
    raise AssertionError(vocabulary.decode(ids))


@pytest.mark.parametrize("name", SEVERAL)
def test_several_calls_follow_each_other_unless_one_alone_is_asked_for(name: str, family: Any) -> None:
    model = family(name)
    two = model.written(("weather", {"city": "Rome"}), ("time_of_day", {"city": "Oslo"}))
    names = ("weather", "time_of_day")
    assert model.refused(model.grammar(must_call=names), two) is None
    assert model.refused(model.grammar(must_call=names, one_call=True), two)
    strict = [tool("weather", strict=True), tool("time_of_day")]
    assert model.refused(model.grammar(strict), two) is None
    assert model.refused(model.grammar(strict, one_call=True), two)


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {*SPACED, "gpt-oss"}))
def test_arguments_of_a_strict_tool_follow_its_schema_when_it_is_called(name: str, family: Any) -> None:
    model = family(name)
    strict = model.grammar([tool("weather", strict=True), tool("time_of_day")])
    assert model.refused(strict, model.written(("weather", {"city": "Rome"}))) is None
    assert model.refused(strict, model.written(("weather", {"place": "Rome"})))
    assert model.refused(strict, model.written(("time_of_day", {"place": "Rome"}))) is None
    closed = "A thought.</think>" if model.prompt[-1:] and model.renderer.forms._thinking(model.prompt) else ""
    assert model.refused(strict, model.ids(f"{closed}It is late, and no call is made.")) is None


def test_where_a_call_begins_with_plain_text_strict_tools_are_left_free(family: Any) -> None:
    """A grammar of text would forbid the channels of gpt-oss, or allow its calls without their schema."""
    model = family("gpt-oss")
    assert model.renderer.forms.grammar(model.prompt, [tool("weather", strict=True)]) is None


@pytest.mark.parametrize("text", ["<|python_tag|>x = 1", "It is {late}.", ""])
def test_a_turn_that_does_not_begin_like_a_bare_call_is_free(text: str, family: Any) -> None:
    model = family("llama-3.1")
    grammar = model.grammar([tool("weather", strict=True)])
    assert model.refused(grammar, model.ids(text + "<|eot_id|>")) is None
    ids = model.renderer.vocabulary.encode(text)
    state = model.grammars.state(model.grammars.compile(grammar), model.renderer.stop_ids)
    for at, token in enumerate(ids):
        free = all(state.allows(other) for other in range(len(model.tokenizer)))
        assert free or at == 0
        state.accept(token)


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "deepseek-v3", "granite-4"])
def test_before_a_call_a_strict_tool_forbids_nothing_at_all(name: str, family: Any) -> None:
    """So that the tokens before it are drawn from the policy alone."""
    model = family(name)
    grammar = model.grammar([tool("weather", strict=True)])
    text = "Let me see. <b>12</b> {\n" if name == "qwen2.5" else "<think>Hm, {.</think>\n\nLet me see. {\n"
    ids = model.renderer.vocabulary.encode(text.removeprefix("<think>") if name == "deepseek-v3" else text)
    state = model.grammars.state(model.grammars.compile(grammar), model.renderer.stop_ids)
    for token in ids:
        assert all(state.allows(other) for other in range(len(model.tokenizer)))
        state.accept(token)


def test_thinking_may_come_first_and_may_not_end_the_turn(family: Any) -> None:
    model = family("qwen3")
    forced = model.grammar(must_call=("weather",))
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
    assert model.refused(forced, model.ids(call)) is None
    assert model.refused(forced, model.ids(f"<think>\nWhere? <b>\n</think>\n\n{call}")) is None
    assert model.refused(forced, model.ids("<think>\nWhere?<|im_end|>")).endswith("<|im_end|>")
    assert model.refused(forced, model.ids("<think>\nWhere?</think>\n\nNowhere.")).endswith("N")


def test_thinking_that_the_prompt_has_closed_does_not_come_again(family: Any) -> None:
    model = family("qwen3")
    closed = [*model.prompt, *model.renderer.vocabulary.encode("<think>\n\n</think>\n\n")]
    grammar = model.renderer.forms.grammar(closed, TOOLS, must_call=("weather",))
    assert model.refused(grammar, model.ids("<think>\n")) == "<think>"
    assert model.renderer.forms.grammar(closed, content=Grammar("json_object")) == Grammar("json_object")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen2.5", '{"a": 1}<|im_end|>'),
        ("qwen3", '{"a": 1}<|im_end|>'),
        ("qwen3", '<think>\nHm.\n</think>\n\n{"a": 1}<|im_end|>'),
        ("deepseek-r1", 'Hm.\n</think>\n\n{"a": 1}<｜end▁of▁sentence｜>'),
        ("gpt-oss", '<|channel|>final<|message|>{"a": 1}<|return|>'),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
        ),
    ],
)
def test_the_answer_has_the_form_that_was_asked_for(name: str, text: str, family: Any) -> None:
    model = family(name)
    for content in (Grammar("json_object"), Grammar("json_schema", '{"type": "object"}'), Grammar("regex", r"\{.*\}")):
        grammar = model.grammar(None, content=content)
        assert model.refused(grammar, model.ids(text)) is None
        assert model.refused(grammar, model.ids(text.replace("{", "[")))


def test_beside_tools_the_answer_is_of_the_form_or_calls(family: Any) -> None:
    model = family("qwen3")
    grammar = model.grammar(content=Grammar("json_schema", json.dumps(SCHEMA)))
    assert model.refused(grammar, model.ids('<think>\n.\n</think>\n\n{"city": "Rome"}')) is None
    assert model.refused(grammar, model.written(("weather", {"city": "Rome"}))) is None
    assert model.refused(grammar, model.ids("Rome"))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(KNOWN)))
def test_where_the_form_of_calls_cannot_be_told_a_choice_of_tools_is_refused(name: str, family: Any) -> None:
    model = family(name)
    with pytest.raises(GatewayError, match="tool_choice") as refused:
        model.grammar(must_call=("weather",))
    assert refused.value.status == 400
    assert refused.value.param == "tool_choice"
    assert "rollout.override: {tool_choice: null}" in str(refused.value.fix)
    assert model.renderer.forms.grammar(model.prompt, [tool("weather", strict=True)]) is None


def test_arguments_in_tags_follow_their_schema(make_tokenizer: Any) -> None:
    """As Qwen3.5 writes them."""
    model = Family(make_tokenizer(official("qwen3_5_think")))
    strict = [tool("weather", strict=True)]
    arguments = "<parameter={}>\nRome < Oslo\n</parameter>"
    call = f"Hm.</think>\n\n<tool_call>\n<function=weather>\n{arguments}\n</function>\n</tool_call>"
    for grammar in (model.grammar(strict, must_call=("weather",)), model.grammar(strict)):
        assert model.refused(grammar, model.ids(call.format("city"))) is None
        assert model.refused(grammar, model.ids(call.format("place")))


def test_a_tool_that_is_not_there_cannot_be_chosen(family: Any) -> None:
    with pytest.raises(GatewayError, match="'nothing', which is not among the tools"):
        family("qwen3").grammar(must_call=("nothing",))


def test_where_no_token_ends_a_call_a_grammar_keeps_to_one(family: Any) -> None:
    model = family("deepseek-v3")
    one = model.grammar(one_call=True)
    assert model.refused(one, model.written(("weather", {"city": "Rome"}))) is None
    assert model.refused(one, model.written(("weather", {"city": "Rome"}), ("weather", {"city": "Oslo"})))
    assert model.refused(one, model.ids("Hm.</think>It is late.")) is None
    assert model.renderer.forms.grammar(model.prompt, None, one_call=True) is None


@pytest.mark.parametrize(
    ("kind", "text"),
    [("json_schema", "{"), *(("structural_tag", text) for text in ("{", "[1]", "{}", '{"format": 1}'))],
)
def test_a_form_that_is_none_is_refused(kind: Any, text: str, family: Any) -> None:
    model = family("qwen3")
    with pytest.raises(GatewayError, match="response_format holds no") as refused:
        model.grammar(None, content=Grammar(kind, text))
    assert refused.value.status == 400


def test_without_a_wish_there_is_no_grammar(family: Any) -> None:
    model = family("qwen3")
    assert model.renderer.forms.grammar(model.prompt, TOOLS) is None
    assert model.renderer.forms.grammar(model.prompt, TOOLS, one_call=True) is None
