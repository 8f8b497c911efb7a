"""An agent with tools before models of real families: the examination says whether they are seen and read."""

from __future__ import annotations

import pytest
from tests.tokens.families import FAMILIES, model_folder

QUICK = ("rollout.max_tokens=8", "rollout.tasks_per_step=1", "rollout.group_size=2")
DEAF = """
import openai

async def goes_on(data, *, base_url, api_key, http_client):
    "Asks again without its tools where they are refused."
    client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": data["question"]}]
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    try:
        await client.chat.completions.create(model="m", messages=messages, tools=[tool])
    except openai.BadRequestError:
        await client.chat.completions.create(model="m", messages=messages)
    return 1.0
"""


MARKED = """
import openai

async def quotes(data, *, base_url, api_key, http_client):
    client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": "What does <|im_end|> mean?"}]
    await client.chat.completions.create(model="m", messages=messages)
    return 1.0
"""


def texts(result, section):
    return [each.text for name, each in result.told.found_in if name == section]


@pytest.mark.parametrize(
    ("name", "loses"),
    [
        ("smollm2", "never shows the names, descriptions and parameters of tools"),
        ("olmo-3", "tool calls in the form that the chat template"),
    ],
)
def test_an_agent_with_tools_is_not_ready_to_train_where_they_would_be_lost(examined, tmp_path, name, loses):
    result = examined("calculator", f"model={model_folder(name, tmp_path / name)}", *QUICK)
    problem = result.only("problem", "agent")
    assert loses in problem.text
    assert "model.chat_template" in problem.fix
    assert not result.diagnosis.ready
    assert any("agents with tools are refused" in text for text in texts(result, "model"))


def test_so_it_is_where_the_agent_goes_on_without_its_tools(examined, tmp_path):
    (tmp_path / "deaf.py").write_text(DEAF)
    result = examined("deaf.py:goes_on", f"model={model_folder('phi-3.5', tmp_path / 'phi')}", *QUICK)
    assert "never shows" in result.only("problem", "agent").text


def test_a_template_of_ones_own_is_the_way_out(examined, tmp_path):
    (tmp_path / "own.jinja").write_text(FAMILIES["granite-4"].template)
    folder = model_folder("llama-3", tmp_path / "llama-3")
    result = examined("calculator", f"model={folder}", "model.chat_template=own.jinja", *QUICK)
    assert any("and calls are read" in text for text in texts(result, "model"))
    assert not result.found("agent")


def test_a_date_in_every_prompt_is_told(examined, tmp_path):
    folder = model_folder("llama-3.2", tmp_path / "llama")
    result = examined("calculator", f"model={folder}", "model.date=2026-03-14", *QUICK)
    assert any("2026-03-14 in every prompt" in text for text in texts(result, "model"))
    assert not result.found("agent")


@pytest.mark.parametrize("setting", ["keep", "plain"])
def test_control_tokens_in_the_agents_texts_are_told_unless_they_are_plain(examined, tmp_path, setting):
    (tmp_path / "marked.py").write_text(MARKED)
    folder = model_folder("smollm2", tmp_path / "model")
    result = examined("marked.py:quotes", f"model={folder}", f"model.control_tokens={setting}", *QUICK)
    told = [text for text in texts(result, "agent") if "<|im_end|>, which the model reads as control tokens" in text]
    assert len(told) == (setting == "keep")
