"""Custom tools whose text is a regular expression: kept to where a grammar can keep all of it, else counted."""

from __future__ import annotations

import json
import re

import pytest
import xgrammar
from tests.gateway.test_responses import run

from agentrl.gateway.dialects.patterns import fits_json

KEPT = [
    ("[a-z]+", "abc", "ABC"),
    ("^[a-z]+$", "abc", ""),
    ("(?:ab|c){2}", "abc", "ab"),
    (r"\d{3}-\d{4}", "123-4567", "123"),
    ("a|b", "b", "ab"),
    ("\u00fc{1,2}!?", "\u00fc\u00fc!", "!"),
    (r"\(1\.5\)", "(1.5)", "(1x5)"),
    (r"[\]\[x-]*", "]x-[", "y"),
    ("", "", "a"),
]
COUNTED = [
    ".*",
    "[^x]+",
    '"a"',
    r"\\",
    r"\s",
    r"\w+",
    "a\nb",
    r"a\nb",
    "(?=a)a",
    "(?i)a",
    "[ -~]+",
    "[A-z]",
    "[\ud7ff-\U0010ffff]\x00",
    "[",
    r"(a)\1",
]


@pytest.mark.parametrize(("pattern", "matched", "other"), KEPT)
def test_what_is_kept_is_kept_to_exactly(pattern, matched, other):
    assert fits_json(pattern)
    info = xgrammar.TokenizerInfo(
        [bytes([byte]) for byte in range(256)] + [b"</s>"], vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256]
    )
    schema = {
        "type": "object",
        "properties": {"input": {"type": "string", "pattern": pattern}},
        "required": ["input"],
        "additionalProperties": False,
    }
    compiled = xgrammar.GrammarCompiler(info, max_threads=1).compile_json_schema(json.dumps(schema))
    for text, expected in [(matched, True), (other, False)]:
        assert (re.fullmatch(pattern, text) is not None) == expected
        matcher = xgrammar.GrammarMatcher(compiled)
        written = json.dumps({"input": text}, ensure_ascii=False).encode()
        assert (all(map(matcher.accept_token, written)) and matcher.accept_token(256)) == expected


@pytest.mark.parametrize("pattern", COUNTED)
def test_what_cannot_be_kept_to_exactly_is_not(pattern):
    assert not fits_json(pattern)


@pytest.mark.parametrize(
    ("definition", "override", "unmet", "overridden"),
    [
        ("[a-z]+", {}, ("strict",), ()),  # The scripted backend has no grammars.
        ("[a-z]+", {"strict": False}, ("format",), ("strict",)),
        (".*", {}, ("format",), ()),
    ],
)
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_pattern_is_a_strict_argument(
    in_process, open_session, backend, api, definition, override, unmet, overridden
):
    backend.says("No.")
    session = open_session(override=override)
    form = {"syntax": "regex", "definition": definition}

    async def talk(client):
        if api == "chat":
            tool = {"name": "say", "format": {"type": "grammar", "grammar": form}}
            messages = [{"role": "user", "content": "?"}]
            await client.chat.completions.create(
                model="any", messages=messages, tools=[{"type": "custom", "custom": tool}]
            )
        else:
            tool = {"type": "custom", "name": "say", "format": {"type": "grammar", **form}}
            await client.responses.create(model="any", input="?", tools=[tool])

    run(in_process, session, talk)
    (call,) = session.calls
    assert (call.unmet, call.overridden) == (unmet, overridden)
    prompt = backend.renderer.vocabulary.decode(list(backend.requests[0].prompt_ids))
    assert "The input follows this grammar" in prompt
    assert ('"pattern": "[a-z]+"' in prompt) == (unmet == ("strict",))
