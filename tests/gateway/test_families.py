"""Real templates behind the gateway: what an agent of a family is answered, and what its next prompt holds."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import openai
import pytest
from tests.gateway.conftest import CONTEXT, ScriptedBackend
from tests.gateway.family_gateway import ASK as QUESTION
from tests.gateway.family_gateway import TOOLS, family_gateway
from tests.tokens.families import FAMILIES, tokenizer

from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.tokens.renderer import SEEN
from agentrl.tokens.selection import load_renderer

ASK, MORE = {"role": "user", "content": "What is 3 + 4?"}, {"role": "user", "content": "And 5?"}


THOUGHTS = {
    "deepseek-r1": "Add.\n</think>\n\n7",
    "deepseek-v3": "Add.\n</think>\n\n7",
    "gpt-oss": "<|channel|>analysis<|message|>Add.<|end|><|start|>assistant<|channel|>final<|message|>7",
}
"""How a turn with thinking is sampled, where not between the usual marks."""


@pytest.fixture(scope="module")
def behind():
    """A family's gateway: texts that its backend writes in, the session and the agent's messages out."""
    gateways = {}

    def behind(name, *texts):
        if name not in gateways:
            renderer = load_renderer(tokenizer(name))
            gateways[name] = Gateway(EngineCompleter(ScriptedBackend(renderer), Capabilities(CONTEXT, 8), renderer))
        gateway = gateways[name]
        backend = gateway.completer.backend
        backend.requests.clear()
        backend.script[:] = [backend.renderer.vocabulary.encode(text) for text in texts]
        session = gateway.open_session(SessionSettings(training=True))

        def ask(*messages):
            async def create():
                async with openai.AsyncOpenAI(
                    base_url=session.base_url, api_key=session.api_key, http_client=session.http_client
                ) as client:
                    return await client.chat.completions.create(model="x", messages=messages)

            return asyncio.run(create()).choices[0].message.model_dump()

        return session, backend, ask

    yield behind
    for gateway in gateways.values():
        gateway.stop()


def test_an_end_of_turn_is_no_part_of_what_the_agent_reads_nor_of_the_next_prompt(behind):
    session, backend, ask = behind("phi-3.5", "7<|end|>", "8<|endoftext|>")
    answer = ask(ASK)
    assert answer["content"] == "7"
    assert ask(ASK, answer, MORE)["content"] == "8"
    text = backend.renderer.vocabulary.decode(backend.requests[1].prompt_ids)
    assert text.count("<|end|>") == 3
    assert session.calls[1].parent == session.calls[0].id


@pytest.mark.parametrize("way", ["unchanged", "without thinking", "thinking inside"])
@pytest.mark.parametrize("name", ["deepseek-r1", "deepseek-v3"])
def test_a_turn_whose_thinking_the_prompt_opened_is_found_however_it_comes_back(behind, name, way):
    end = "<｜end▁of▁sentence｜>"
    session, backend, ask = behind(name, f"Add.\n</think>\n\n7{end}", f"Again.</think>8{end}")
    answer = ask(ASK)
    assert (answer["content"], answer["reasoning_content"]) == ("7", "Add.")
    if way != "unchanged":
        thought = answer.pop("reasoning_content")
        answer["content"] = f"<think>{thought}</think>7" if way == "thinking inside" else "7"
    assert ask(ASK, answer, MORE)["content"] == "8"
    first, second = session.calls
    assert second.parent == first.id
    assert second.fork_reason != "history edited"
    assert "Add." not in backend.renderer.vocabulary.decode(backend.requests[1].prompt_ids)


@pytest.mark.parametrize("name", ["qwen2.5", "mistral", "granite-4", "glm-4.5", "gpt-oss"])
def test_a_loop_of_tools_is_one_chain_that_no_turn_encodes_again(name):
    family = family_gateway(name)
    session, messages = family.session(), [ASK]
    family.backend.requests.clear()
    for turn in range(5):
        written = family.written_call({"expression": f"{turn} + 4"})
        answer = family.create(session, written, messages=messages, tools=TOOLS).choices[0].message
        result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": str(turn + 4)}
        messages = [*messages, answer.model_dump(exclude_none=True), result]
    assert [call.fork_reason for call in session.calls] == [None] * 5
    assert [call.parent for call in session.calls[1:]] == [call.id for call in session.calls[:-1]]
    asked = [list(request.prompt_ids) for request in family.backend.requests]
    for before, after in pairwise(asked):
        assert after[: len(before)] == before
    assert sum(span.sampled is not None for span in session.tree.spans) == 5
    assert "3 + 4" in family.prompt


def test_thinking_that_a_template_keeps_stays_though_the_client_leaves_it_out():
    family = family_gateway("glm-4.5")
    session, end = family.session(), family.renderer.vocabulary.special_id("<|observation|>")
    called = family.renderer.vocabulary.decode(family.written_call({"expression": "3 + 4"}))
    thought = called.replace("<think></think>", "<think>Add them.</think>").removesuffix("<|observation|>")
    ids = [*family.renderer.vocabulary.encode(thought), end]
    answer = family.create(session, ids, tools=TOOLS).choices[0].message.model_dump(exclude_none=True)
    assert answer.pop("reasoning_content") == "Add them."
    messages = [QUESTION, answer, {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "7"}]
    family.create(session, "7", messages=messages, tools=TOOLS)
    assert session.calls[1].fork_reason is None
    assert "Add them." in family.prompt


@pytest.mark.parametrize("name", ["deepseek-r1", "deepseek-v3", "gpt-oss", "glm-4.5", "qwen3"])
def test_where_an_answer_is_rewritten_nothing_before_its_question_is_encoded_again(name):
    family, spoken = family_gateway(name), THOUGHTS.get(name, "<think>\nAdd.\n</think>\n\n7")
    session, messages, renderer = family.session(), [QUESTION], family.renderer
    family.backend.requests.clear()
    rendered = []
    renderer.render, render = lambda *given: rendered.append(given) or render(*given), renderer.render
    try:
        for turn in range(4):
            answer = family.create(session, spoken, messages=messages).choices[0].message
            messages = [*messages, answer.model_dump(exclude_none=True), {"role": "user", "content": f"And {turn}?"}]
    finally:
        del renderer.render
    assert None not in [call.fork_reason for call in session.calls[1:]]
    assert len(rendered) <= 1
    asked = [list(request.prompt_ids) for request in family.backend.requests]
    decode = renderer.vocabulary.decode
    for n, (before, after) in enumerate(pairwise(asked)):
        assert decode(after) == decode(renderer.render(messages[: 2 * n + 3]))
        same = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))
        assert len(before) - same <= 4


@pytest.mark.parametrize("spoken", ["It is 7.", "<think>\nFour more.\n</think>\n\nIt is 7."])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_follows_a_prompt_depends_on_its_end_alone(name, spoken):
    """So a turn costs nothing for the history before it: renderers are shown the end of the recorded prompt."""
    family = family_gateway(name)
    renderer, asked = family.renderer, [{"role": "user", "content": f"{n}: what is 3 + 4? " * 40} for n in range(4)]
    history = [each for ask in asked[:3] for each in (ask, {"role": "assistant", "content": "7"})] + [asked[3]]
    prompt, completion = renderer.render(history), [*renderer.vocabulary.encode(spoken), family.end]
    assert len(prompt) > 4 * SEEN
    before, seen = prompt[:-SEEN], prompt[-SEEN:]
    turn = renderer.parse(completion, None, prompt)
    assert renderer.parse(completion, None, seen) == turn
    for new in ([MORE], [{"role": "system", "content": "Be brief."}, MORE], [{"role": "tool", "content": "7"}]):
        whole, part = (
            renderer.extend(ids, completion, new, thinking="<think>" in spoken, history=[*history, turn])
            for ids in (prompt, seen)
        )
        assert (part if isinstance(part, str) else [*before, *part]) == whole


@pytest.mark.parametrize("name", ["smollm2", "glm-4.5", "phi-3.5"])
def test_a_turn_that_a_limit_cut_goes_on_with_its_end_as_a_given_token(name):
    family, session = family_gateway(name), family_gateway(name).session()
    cut = family.backend.chunk(family.renderer.vocabulary.encode("It is 40"), finish="length")
    answer = family.create(session, cut).choices[0]
    assert answer.finish_reason == "length"
    family.create(session, "8.", messages=[QUESTION, answer.message, MORE])
    assert session.calls[1].fork_reason is None
    first, between = (span for span in session.tree.spans[1:3])
    assert first.sampled is not None
    assert first.ids == cut.ids
    assert between.sampled is None
    assert between.ids[0] == family.end
