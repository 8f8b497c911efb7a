"""Texts of the system that are never the same twice: replaced before rendering and matching, counted, and kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.conftest import ScriptedBackend

from agentrl.config import load_config
from agentrl.errors import ConfigError, PluginError
from agentrl.gateway import EngineCompleter, Gateway, RelayCompleter, Session, SessionSettings
from agentrl.gateway.contract import Call, Exchange, ModelRequest, Replacement
from agentrl.gateway.dialects.messages.dialect import Messages
from agentrl.gateway.normalise import (
    Normalisers,
    claude_code_billing_header,
    clock_times,
    tokens_left,
    uuids,
)
from agentrl.gateway.retries import parts
from agentrl.inference.contract import Capabilities, ChatCompletion, ChatRequest
from agentrl.plugins import Plugins
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.runs.tally import rollout_metrics

HEADER = "x-anthropic-billing-header: cc_version=2.1.177.{0:03x}; cc_entrypoint=sdk-cli; cch={0:05x};"
ASK = {"role": "user", "content": "What is 12 * 34?"}
MORE = {"role": "user", "content": "Sure?"}
FIRST = "00000000-0000-0000-0000-000000000001"
UUID = "3f2b8c1e-9d4a-4c7b-8e21-0a1b2c3d4e5f"

Rule = Callable[[str], str]

REPLACED: list[tuple[Rule, str, str]] = [
    (claude_code_billing_header, HEADER.format(7), ""),
    (claude_code_billing_header, f"{HEADER.format(7)}\nYou are it.\n\nAdd.", "You are it.\n\nAdd."),
    (claude_code_billing_header, f"{HEADER.format(7)}You are it: a=b; add.", "You are it: a=b; add."),
    (claude_code_billing_header, f"{HEADER.format(7)} cc_workload=cron;\n\n  You.", "You."),
    (claude_code_billing_header, f"You.\n{HEADER.format(7)}\nAdd.", "You.\nAdd."),
    (clock_times, "It is 2026-01-31T09:41:07.123Z.", "It is 2026-01-31T??:??:??Z."),
    (clock_times, "2026-01-31 09:41:07+01:00", "2026-01-31 ??:??:??+01:00"),
    (clock_times, "Sat Jan 31 09:41:07 UTC 2026", "Sat Jan 31 ??:??:?? UTC 2026"),
    (clock_times, "1/31/2026, 9:41:07 AM; 12:00:00 p.m.", "1/31/2026, ??:??:??; ??:??:??"),
    (tokens_left, "Token usage: 38472/200000; 161528 remaining", "Token usage: ?/?; ? remaining"),
    (tokens_left, "You have 12,345 tokens left. Answer in 3 words.", "You have ? tokens left. Answer in 3 words."),
    (tokens_left, "Context left until auto-compact: 12%", "Context left until auto-compact: ?%"),
    (tokens_left, "Remaining tokens: 1200.", "Remaining tokens: ?."),
    (tokens_left, "34.5% of the context window remaining", "?% of the context window remaining"),
    (tokens_left, "131k tokens used", "? tokens used"),
    (uuids, f"a {UUID}, b {UUID.upper()}", f"a {FIRST}, b {FIRST}"),
]
KEPT: list[tuple[Rule, str]] = [
    (claude_code_billing_header, "Send no x-anthropic-billing-header: it is ours."),
    (clock_times, "Ratio 1:2:3, at 09:41, address ab:12:34:56:cd, for 100:00:00 and 12:34:56:78."),
    (
        tokens_left,
        "There are 3 tools. Use 200 tokens at most. Keep the context, and ask 2 questions. 5 apples are left.",
    ),
    (uuids, f"{UUID}-7 and x{UUID} and 3f2b8c1e-9d4a"),
]


@pytest.mark.parametrize(("rule", "sent", "rendered"), REPLACED)
def test_a_bundled_rule_replaces_what_it_names(rule: Rule, sent: str, rendered: str) -> None:
    assert rule(sent) == rendered
    assert rule(rendered) == rendered


@pytest.mark.parametrize(("rule", "text"), KEPT)
def test_a_bundled_rule_leaves_everything_else(rule: Rule, text: str) -> None:
    assert rule(text) == text


def test_different_uuids_stay_different() -> None:
    other = UUID.replace("3f", "4f")
    first, second, again = uuids(f"{other} {UUID} {other}").split()
    assert first == again != second


texts = st.text(st.sampled_from("ab\n é"), max_size=12)


@given(texts, st.lists(texts, max_size=3))
def test_the_text_as_rendered_follows_from_the_text_as_sent(sent: str, steps: list[str]) -> None:
    """Whatever the rules do, what is kept with the call tells it."""
    rules = Normalisers([(f"rule-{number}", lambda _, text=text: text) for number, text in enumerate(steps)])
    request = ModelRequest({}, [{"role": "system", "content": sent}, ASK])
    applied, text = rules.applied(request), sent
    for each in applied.normalised:
        assert text[each.start : each.start + len(each.sent)] == each.sent
        text = text[: each.start] + each.rendered + text[each.start + len(each.sent) :]
    assert text == (steps[-1] if steps and sent else sent)
    changed = [{"role": "system", "content": text}] if text or not applied.normalised else []
    assert applied.messages == [*changed, ASK]
    assert request.messages == [{"role": "system", "content": sent}, ASK]


class Instructed:
    """A session whose agent sends ``system``, another text with every request."""

    def __init__(self, gateway: Gateway, backend: ScriptedBackend, system: Callable[[int], Any]) -> None:
        self.gateway, self.backend, self.system = gateway, backend, system
        self.session: Session = gateway.open_session(SessionSettings(training=True))
        self.history: list[Any] = []
        self.turns = 0

    def say(self, *messages: dict[str, Any]) -> Call:
        """Ask with the whole history; the recorded call."""
        self.backend.says("It is 408.")
        self.history += messages
        self.turns += 1
        client = openai.AsyncOpenAI(
            base_url=self.session.base_url,
            api_key=self.session.api_key,
            http_client=self.gateway.http_client(httpx2),
            max_retries=0,
        )
        asked = [{"role": "system", "content": self.system(self.turns)}, *self.history]
        answer = asyncio.run(client.chat.completions.create(model="m", messages=asked))
        self.history.append(answer.choices[0].message.model_dump(exclude_none=True))
        return self.session.calls[-1]

    @property
    def prompts(self) -> list[str]:
        return [self.backend.renderer.vocabulary.decode(request.prompt_ids) for request in self.backend.requests]


def gateway_with(renderer: Any, rules: Sequence[tuple[str, Rule]]) -> tuple[Gateway, ScriptedBackend]:
    backend = ScriptedBackend(renderer)
    completer = EngineCompleter(backend, Capabilities(context_length=1024, max_concurrency=8), renderer)
    return Gateway(completer, normalisers=Normalisers(rules)), backend


def claude_code(turn: int) -> list[dict[str, str]]:
    """The system prompt as text parts, the first of which is for the server's accounts."""
    return [{"type": "text", "text": text} for text in (HEADER.format(turn), "You add.")]


BILLING = ("claude-code-billing-header", claude_code_billing_header)


def test_a_conversation_is_one_chain_and_is_stored_as_it_was_sent(renderer) -> None:
    agent = Instructed(*gateway_with(renderer, [BILLING]), claude_code)
    calls = [agent.say(ASK), agent.say(MORE), agent.say(MORE)]
    assert [call.parent for call in calls] == [None, calls[0].id, calls[1].id]
    assert [call.fork_reason for call in calls] == [None] * 3
    for turn, call in enumerate(calls, 1):
        assert call.request["messages"][0] == {"role": "system", "content": claude_code(turn)}
        assert call.normalised == (Replacement("claude-code-billing-header", 0, 0, HEADER.format(turn), ""),)
    assert not any("billing" in prompt for prompt in agent.prompts)


def test_the_ids_are_those_of_a_client_that_sends_the_rendered_text(renderer) -> None:
    agent = Instructed(*gateway_with(renderer, [BILLING]), claude_code)
    plain = Instructed(*gateway_with(renderer, []), lambda _: "You add.")
    for each in (agent, plain):
        each.say(ASK)
        each.say(MORE)
    assert [request.prompt_ids for request in agent.backend.requests] == [
        request.prompt_ids for request in plain.backend.requests
    ]
    assert agent.session.tree.spans[0] == plain.session.tree.spans[0]
    assert [call.normalised for call in plain.session.calls] == [(), ()]


def test_without_the_rule_nothing_is_changed(renderer) -> None:
    agent = Instructed(*gateway_with(renderer, []), claude_code)
    calls = [agent.say(ASK), agent.say(MORE)]
    assert [call.parent for call in calls] == [None, None]
    assert all("billing" in prompt for prompt in agent.prompts)


def test_messages_in_the_middle_and_those_of_developers_are_texts_of_the_system(renderer) -> None:
    agent = Instructed(*gateway_with(renderer, [("clock-times", clock_times)]), lambda _: "Add at 09:41:07.")
    agent.say(ASK)
    call = agent.say({"role": "developer", "content": "It is 09:41:08."}, {"role": "user", "content": "At 09:41:09?"})
    assert [each.message for each in call.normalised] == [0, 3]
    assert "It is ??:??:??." in agent.prompts[-1]
    assert "At 09:41:09?" in agent.prompts[-1]


def test_a_message_of_which_nothing_is_left_is_not_rendered(renderer) -> None:
    agent = Instructed(*gateway_with(renderer, [BILLING]), lambda turn: HEADER.format(turn))
    agent.say(ASK)
    assert agent.prompts == [renderer.vocabulary.decode(renderer.render([ASK]))]


def test_each_rule_is_counted_by_its_name(renderer) -> None:
    agent = Instructed(*gateway_with(renderer, [BILLING, ("clock-times", clock_times)]), lambda turn: "Add.\n09:41:07")
    agent.say(ASK)
    agent.say(MORE)
    episode = Episode(EpisodeKey("train", 0, 0, 0), {}, "rewarded", 1.0, calls=agent.session.calls)
    counted = {name: value for name, value in rollout_metrics([Group(0, (episode,))]).items() if "normalised" in name}
    assert counted == {"rollout/normalised/clock-times": 2}


@pytest.mark.parametrize("asking", [{"stream": True}, {"n": 2}], ids=str)
def test_streams_and_several_choices_are_of_the_rendered_text(renderer, asking: dict[str, Any]) -> None:
    agent = Instructed(*gateway_with(renderer, [BILLING]), claude_code)
    agent.backend.says(*["It is 408."] * 2)
    body = {"model": "m", "messages": [{"role": "system", "content": claude_code(1)}, ASK], **asking}
    asyncio.run(posted(agent.gateway, agent.session, "/chat/completions", body))
    assert [len(call.normalised) for call in agent.session.calls] == [1] * asking.get("n", 1)
    assert not any("billing" in prompt for prompt in agent.prompts)


def test_the_tokens_of_a_request_are_counted_as_it_is_rendered(renderer) -> None:
    body = {"model": "m", "messages": [ASK], "system": claude_code(1)}
    completer = EngineCompleter(ScriptedBackend(renderer), Capabilities(1024, 8), renderer)
    counts = []
    for rules in ([BILLING], []):
        gateway = Gateway(completer, [Messages()], normalisers=Normalisers(rules))
        session = gateway.open_session(SessionSettings(training=True))
        counts.append(json.loads(asyncio.run(posted(gateway, session, "/messages/count_tokens", body)))["input_tokens"])
    assert counts[0] == len(renderer.render([{"role": "system", "content": "You add."}, ASK])) < counts[1]


async def posted(gateway: Gateway, session: Session, path: str, body: dict[str, Any]) -> bytes:
    """The whole answer to a request."""
    headers = {"authorization": f"Bearer {session.api_key}"}
    reply = await gateway.answer(Exchange("POST", f"/v1{path}", json.dumps(body).encode(), headers))
    assert reply.status == 200, reply.body
    return reply.body if isinstance(reply.body, bytes) else b"".join([part async for part in parts(reply.body)])


@pytest.mark.parametrize(
    ("rule", "said"), [(lambda text: text[99], "IndexError"), (lambda text: None, "None, which is no text")]
)
def test_a_rule_that_fails_is_named_and_nothing_is_recorded(renderer, rule, said: str) -> None:
    agent = Instructed(*gateway_with(renderer, [("mine", rule)]), lambda turn: "Add." if turn == 1 else [])
    with pytest.raises(
        openai.BadRequestError, match=f"rule 'mine' of gateway.normalise failed: .*{said}.*leave it out"
    ):
        agent.say(ASK)
    assert agent.session.calls == ()
    assert len(agent.session.tree.spans) == 0
    agent.history.clear()
    agent.say(ASK)


class Endpoint:
    """Answers everything alike."""

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        self.requests.append(request)
        message = {"role": "assistant", "content": "2"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "x", "model": "m", "object": "chat.completion", "created": 0, "choices": [choice]}
        return ChatCompletion(answer, message, "stop", 9, 1)


def test_an_endpoint_is_sent_what_an_engine_would_be(renderer) -> None:
    endpoint = Endpoint()
    gateway = Gateway(RelayCompleter(endpoint), normalisers=Normalisers([BILLING]))
    agent = Instructed(gateway, ScriptedBackend(renderer), claude_code)
    calls = [agent.say(ASK), agent.say(MORE)]
    assert {request.body["messages"][0]["content"] for request in endpoint.requests} == {"You add."}
    assert calls[1].parent == calls[0].id
    assert [call.normalised[0].sent for call in calls] == [HEADER.format(1), HEADER.format(2)]
    image = {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    agent.say(image)
    assert image in endpoint.requests[-1].body["messages"]


def built(*arguments: str) -> Normalisers:
    return Normalisers.build(Plugins(), load_config(None, *arguments, environ={}).gateway.normalise)


def applied(rules: Normalisers, text: str) -> str:
    return str(rules.applied(ModelRequest({}, [{"role": "system", "content": text}])).messages[0]["content"])


def test_only_the_billing_header_is_on_by_default_and_a_list_switches_by_name() -> None:
    text = f"{HEADER.format(1)}\nIt is 09:41:07, {UUID}, 12 tokens left."
    assert applied(built(), text) == f"It is 09:41:07, {UUID}, 12 tokens left."
    assert applied(built("gateway.normalise=[]"), text) == text
    both = built("gateway.normalise=[clock-times, tokens-left]")
    assert applied(both, text) == f"{HEADER.format(1)}\nIt is ??:??:??, {UUID}, ? tokens left."


def test_a_name_that_is_unknown_is_refused_with_one_that_is_near() -> None:
    with pytest.raises(ConfigError, match=r"'clock-time'.*did you mean 'clock-times'\?") as caught:
        built("gateway.normalise=[clock-time]")
    assert caught.value.exit_code == 2


def test_a_rule_may_be_a_function_in_a_file_and_take_keys(tmp_path: Path) -> None:
    source = "def without(text: str, word: str = 'rain') -> str:\n    return text.replace(word, '')\nfine = 3\n"
    (tmp_path / "rules.py").write_text(source)
    rule = f"{tmp_path}/rules.py:without"
    assert applied(built(f"gateway.normalise=[{rule}]"), "rain, snow") == ", snow"
    assert applied(built(f"gateway.normalise=[{{name: {rule}, word: snow}}]"), "rain, snow") == "rain, "
    with pytest.raises(ConfigError, match=r"there is no key 'gateway\.normalise\.words'.*did you mean 'word'"):
        built(f"gateway.normalise=[{{name: {rule}, words: snow}}]")
    with pytest.raises(PluginError, match="is of type int, which cannot be called"):
        built(f"gateway.normalise=[{tmp_path}/rules.py:fine]")
