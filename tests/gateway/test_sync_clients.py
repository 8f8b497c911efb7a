"""The SDK's sync client, whole and streamed: it has only the network to come by."""

from __future__ import annotations

import openai
import pytest

ASK = {"role": "user", "content": "What is 12 * 34?"}


@pytest.fixture
def client(gateway, open_session):
    session = open_session()
    with openai.OpenAI(base_url=session.base_url, api_key=session.api_key, max_retries=0) as client:
        client.session = session
        yield client


def test_a_conversation_is_streamed_and_goes_on(client, backend):
    backend.says("It is 408.", "Yes.")
    with client.chat.completions.create(model="x", messages=[ASK], stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "It is 408."
    messages = [ASK, {"role": "assistant", "content": text}, {"role": "user", "content": "Sure?"}]
    answer = client.chat.completions.create(model="x", messages=messages)
    assert answer.choices[0].message.content == "Yes."
    first, second = client.session.calls
    assert (second.parent, second.fork_reason, first.delivered) == (first.id, None, True)


def test_the_helper_of_streams_gives_the_final_message(client, backend):
    backend.says("It is 408.")
    with client.chat.completions.stream(model="x", messages=[ASK]) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == "It is 408."
    assert {"chunk", "content.delta", "content.done"} <= kinds


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_is_completed(client, backend, stream):
    backend.says(" 408.")
    answer = client.completions.create(model="x", prompt="What is 12 * 34? It is", stream=stream)
    assert "".join(chunk.choices[0].text for chunk in (answer if stream else [answer])) == " 408."


def test_models_are_listed_and_a_refusal_is_an_error_of_the_sdk(client, backend):
    assert [model.id for model in client.models.list()] == ["policy"]
    with pytest.raises(openai.BadRequestError, match="temprature"):
        client.chat.completions.create(model="x", messages=[ASK], stream=True, extra_body={"temprature": 1})
