"""Sessions over HTTP: opened with the admin key, rewarded and closed with their own, and always kept as episodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2
import openai
import pytest
from tests.gateway.conftest import CONTEXT, ScriptedBackend

from agentrl.errors import RunError
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.queueing import QueueLimit
from agentrl.gateway.service import ServiceLimits, SessionService
from agentrl.inference.contract import Capabilities
from agentrl.rollout.contract import Episode, EpisodeKey

ASK = [{"role": "user", "content": "What is 12 * 34?"}]
ADMIN = "the-admin-key-of-this-test"


@dataclass
class Desk:
    """A gateway with the service, what it has stored, and a client of the admin's."""

    backend: ScriptedBackend
    gateway: Gateway = field(init=False)
    service: SessionService = field(init=False)
    stored: dict[EpisodeKey, Episode] = field(default_factory=dict)
    full_disks: int = 0
    """How many attempts to store fail from now on."""

    def serve(self, renderer, limits: ServiceLimits, waiting: int = 100) -> None:
        engine = EngineCompleter(self.backend, Capabilities(CONTEXT, 2), renderer)
        self.gateway = Gateway(QueueLimit(engine, running=2, waiting=waiting), body_limit=2000)
        self.service = SessionService(
            self.gateway.open_session,
            lambda: SessionSettings(training=True, versions=(7, 7), seed_key=("test",)),
            admin_key=ADMIN,
            finished=self.store,
            recall=self.stored.__getitem__,
            limits=limits,
        )
        self.gateway.attach(self.service)
        self.gateway.start()

    async def store(self, episode: Episode) -> None:
        if self.full_disks:
            self.full_disks -= 1
            raise RunError("the disk is full", fix="free some space")
        assert episode.key not in self.stored
        self.stored[episode.key] = episode

    def ask(self, method: str, path: str, key: str = ADMIN, **request: object) -> httpx2.Response:
        with httpx2.Client(base_url=self.gateway.url, verify=False, trust_env=False, timeout=60) as client:
            return client.request(method, f"/v1{path}", headers={"authorization": f"Bearer {key}"}, **request)

    def open(self, **body: object) -> dict:
        opened = self.ask("POST", "/sessions", json=body)
        assert opened.status_code == 201, opened.text
        return opened.json()

    def call(self, opened: dict, says: str = "It is 408.") -> str:
        """The response id of a call by the SDK."""
        self.backend.says(says)
        with openai.OpenAI(base_url=opened["base_url"], api_key=opened["api_key"]) as client:
            return client.chat.completions.create(model="any", messages=ASK).id

    def reward(self, opened: dict, **body: object) -> httpx2.Response:
        return self.ask("POST", f"/sessions/{opened['id']}/rewards", opened["api_key"], json=body)

    def close(self, opened: dict, **body: object) -> dict:
        closed = self.ask("POST", f"/sessions/{opened['id']}/close", opened["api_key"], json=body)
        assert closed.status_code == 200, closed.text
        return closed.json()

    def episode(self, opened: dict) -> Episode:
        return next(episode for key, episode in self.stored.items() if str(key) == opened["episode"])


@pytest.fixture
def desk(renderer) -> Iterator[Desk]:
    desk = Desk(ScriptedBackend(renderer))
    desk.serve(renderer, ServiceLimits(sessions=3, idle_s=1000))
    yield desk
    desk.gateway.stop()


async def running(backend: ScriptedBackend, count: int) -> None:
    """Return once the backend, which runs in another thread, is asked for so many completions."""
    while backend.running != count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_session_is_opened_used_rewarded_and_closed_and_is_then_an_episode(desk):
    opened = desk.open(group="sums", metadata={"question": "12 * 34"})
    name = desk.call(opened)
    assert desk.reward(opened, reward=0.5, parts={"format": 1}).json()["previous"] is None
    assert desk.reward(opened, reward=1, parts={"format": 0.25}).json()["previous"] == 0.5
    closed = desk.close(opened)
    assert (closed["state"], closed["outcome"], closed["reward"], closed["calls"]) == ("closed", "rewarded", 1.0, 1)
    episode = desk.episode(opened)
    assert (episode.outcome, episode.reward, episode.reward_parts) == ("rewarded", 1.0, {"format": 0.25})
    assert [call.id for call in episode.calls] == [name]
    assert episode.tree.spans[-1].sampled.call == name
    assert episode.data == {"session": opened["id"], "group": "sums", "metadata": {"question": "12 * 34"}}
    assert episode.version == 7
    assert desk.close(opened) == closed, "closing again changes nothing"
    assert len(desk.stored) == 1


def test_the_last_call_is_one_whose_answer_the_client_has_if_there_is_any(desk):
    opened = desk.open()
    first, left = desk.call(opened), desk.call(opened, "It is 409.")
    session = desk.gateway._sessions.of_key(opened["api_key"])
    session.arrived(left, False)
    assert desk.reward(opened, reward=1, call="last").json()["call"] == first
    session.arrived(first, False)
    assert desk.reward(opened, reward=1, call="last").json()["call"] == left


def test_calls_are_rewarded_by_their_ids_and_the_last_by_that_word(desk):
    opened = desk.open()
    first, second = desk.call(opened), desk.call(opened, "It is 407.")
    assert desk.reward(opened, reward=0.25, call=first).json()["call"] == first
    assert desk.reward(opened, reward=True, call="last").json()["call"] == second
    assert code(desk.reward(opened, reward=1)) == (409, "mixed_rewards")
    assert code(desk.reward(opened, reward=1, call="chatcmpl-none")) == (400, "unknown_call")
    desk.close(opened)
    episode = desk.episode(opened)
    assert (episode.reward, episode.call_rewards) == (1.25, {first: 0.25, second: 1.0})


def test_calls_and_tokens_can_be_read_while_it_is_open_and_afterwards(desk):
    opened = desk.open()
    name = desk.call(opened)
    desk.reward(opened, reward=1, call=name)
    path = f"/sessions/{opened['id']}/calls"
    during = desk.ask("GET", path, opened["api_key"]).json()
    (call,) = during["calls"]
    assert (call["id"], call["reward"], call["request"]["messages"]) == (name, 1.0, ASK)
    assert during["spans"] == desk.gateway._sessions.all()[0].tree.to_json()
    desk.close(opened)
    assert desk.ask("GET", path, opened["api_key"]).json() == during
    assert desk.ask("GET", f"/sessions/{opened['id']}", opened["api_key"]).json()["state"] == "closed"


def test_an_episode_without_a_reward_is_rejected_and_one_that_failed_says_why(desk):
    rejected, failed, rewarded = desk.open(), desk.open(), desk.open()
    assert desk.close(rejected)["outcome"] == "rejected"
    assert desk.close(failed, failure="the tool server was gone")["outcome"] == "failed"
    assert str(desk.episode(failed).failure) == "agent: the tool server was gone"
    desk.reward(rewarded, reward=1)
    refused = desk.ask("POST", f"/sessions/{rewarded['id']}/close", json={"failure": "x"})
    assert code(refused) == (409, "mixed_rewards")


def test_sessions_of_a_group_are_its_samples_and_evaluations_are_kept_apart(desk):
    keys = [desk.open(group="a")["episode"], desk.open()["episode"], desk.open(group="a")["episode"]]
    assert keys == ["train-0-0-0", "train-1-1-0", "train-0-0-1"]
    desk.close({"id": desk.gateway._sessions.all()[0].id, "api_key": ADMIN})
    evaluation = desk.open(group="a", training=False)
    assert evaluation["episode"] == "eval-0-0-0"


def test_a_session_needs_its_key_and_the_capture_token_does_not_do(desk):
    opened, other = desk.open(), desk.open()
    desk.call(opened)
    with httpx2.Client(verify=False, trust_env=False) as client:
        for path in ("current/rewards", f"{opened['id']}/rewards", f"{opened['id']}/close"):
            url = f"{opened['base_url']}/sessions/{path}"
            assert code(client.post(url, json={"reward": 1})) == (401, "invalid_api_key")
            key = {"x-api-key": other["api_key"]}
            if "current" not in path:
                assert code(client.post(url, json={"reward": 1}, headers=key)) == (401, "invalid_api_key")
        with_key = {"x-api-key": opened["api_key"]}
        rewarded = client.post(f"{opened['base_url']}/sessions/current/rewards", json={"reward": 1}, headers=with_key)
    assert rewarded.json()["session"] == opened["id"]
    assert code(desk.ask("GET", "/sessions/000000000000", opened["api_key"])) == (401, "invalid_api_key")
    assert code(desk.ask("GET", "/sessions/000000000000")) == (404, "no_session")


@pytest.mark.parametrize("key", ["", "wrong", ADMIN + "x", ADMIN[:-1], "schlüssel"])
def test_opening_and_listing_take_the_admin_key(desk, key):
    own = desk.open()
    for method in ("POST", "GET"):
        for given in (key.encode(), own["api_key"]):
            with httpx2.Client(verify=False, trust_env=False) as client:
                response = client.request(method, f"{desk.gateway.url}/v1/sessions", headers={"x-api-key": given})
            assert code(response) == (401, "invalid_api_key")
            assert key == "" or key not in response.text


def test_the_list_holds_no_secret_and_counts_what_there_was(desk):
    opened = desk.open()
    desk.close(desk.open())
    listed = desk.ask("GET", "/sessions")
    assert [each["id"] for each in listed.json()["data"]] == [opened["id"]]
    assert listed.json()["counts"] == {"open": 1, "opened": 2, "closed": 1, "expired": 0}
    assert opened["api_key"] not in listed.text
    assert "capture-" not in listed.text


def test_more_sessions_than_allowed_are_a_429_that_says_when(desk):
    first, *_ = [desk.open() for _ in range(3)]
    refused = desk.ask("POST", "/sessions")
    assert code(refused) == (429, "too_many_sessions")
    assert 900 <= int(refused.headers["retry-after"]) <= 1000
    assert refused.headers["x-should-retry"] == "true"
    desk.close(first)
    assert desk.ask("POST", "/sessions").status_code == 201


def test_more_waiting_calls_than_allowed_are_a_429_and_are_not_recorded(renderer):
    desk = Desk(ScriptedBackend(renderer))
    desk.serve(renderer, ServiceLimits(), waiting=1)
    opened = desk.open()
    desk.backend.script = ["hang"] * 3

    async def run():
        async with openai.AsyncOpenAI(base_url=opened["base_url"], api_key=opened["api_key"], max_retries=0) as client:
            waiting = [
                asyncio.ensure_future(client.chat.completions.create(model="x", messages=ASK, stream=bool(number % 2)))
                for number in range(3)
            ]
            await running(desk.backend, 3)
            for stream in (False, True):
                with pytest.raises(openai.RateLimitError) as refused:
                    await client.chat.completions.create(model="x", messages=ASK, stream=stream)
                assert refused.value.code == "too_many_calls"
                assert refused.value.response.headers["retry-after"] == "1"
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await running(desk.backend, 0)
            desk.backend.says("It is 408.")
            await client.chat.completions.create(model="x", messages=ASK)

    try:
        asyncio.run(run())
        assert desk.close(opened)["calls"] == 1
    finally:
        desk.gateway.stop()


def test_a_session_that_nobody_uses_expires_and_one_with_a_call_under_way_does_not(renderer):
    desk = Desk(ScriptedBackend(renderer))
    desk.serve(renderer, ServiceLimits(idle_s=0.3))
    try:
        idle, rewarded, busy = desk.open(), desk.open(), desk.open()
        desk.call(rewarded)
        desk.reward(rewarded, reward=1, call="last")
        desk.backend.script = ["hang"]

        async def run():
            async with openai.AsyncOpenAI(base_url=busy["base_url"], api_key=busy["api_key"]) as client:
                call = asyncio.ensure_future(client.chat.completions.create(model="x", messages=ASK))
                await running(desk.backend, 1)
                ends = time.monotonic() + 30
                while len(desk.stored) < 2 and time.monotonic() < ends:
                    await asyncio.sleep(0.05)
                    await desk.service.expire()
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)

        asyncio.run(run())
        assert {str(key) for key in desk.stored} == {idle["episode"], rewarded["episode"]}
        assert "expired" in str(desk.episode(idle).failure)
        assert (desk.episode(rewarded).outcome, desk.episode(rewarded).reward) == ("rewarded", 1.0)
        assert desk.service.counts == {"opened": 3, "expired": 2, "unrewarded": 1, "open": 1}
        assert code(desk.reward(idle, reward=1)) == (409, "session_closed")
        assert desk.close(idle)["state"] == "expired"
        with openai.OpenAI(base_url=idle["base_url"], api_key=idle["api_key"]) as client:
            with pytest.raises(openai.NotFoundError) as late:
                client.chat.completions.create(model="x", messages=ASK)
            assert late.value.code == "session_closed"
    finally:
        desk.gateway.stop()


def test_stopping_keeps_what_is_open_and_opens_no_more(desk):
    opened, rewarded = desk.open(), desk.open()
    desk.call(opened)
    desk.reward(rewarded, reward=0.5)
    asyncio.run(desk.service.stop())
    assert "stopped" in str(desk.episode(opened).failure)
    assert len(desk.episode(opened).calls) == 1
    assert desk.episode(rewarded).reward == 0.5
    assert code(desk.ask("POST", "/sessions")) == (503, "stopping")


def test_an_episode_that_cannot_be_stored_is_a_503_and_closing_again_stores_it_once(desk):
    opened = desk.open()
    desk.reward(opened, reward=1)
    desk.full_disks = 1
    refused = desk.ask("POST", f"/sessions/{opened['id']}/close", opened["api_key"])
    assert code(refused) == (503, "not_stored")
    assert "the disk is full" in refused.text
    assert refused.headers["x-should-retry"] == "true"
    assert desk.close(opened)["outcome"] == "rewarded"


def test_closing_at_once_from_many_sides_stores_one_episode(desk):
    opened = desk.open()

    async def run():
        async with httpx2.AsyncClient(
            verify=False, trust_env=False, headers={"x-api-key": opened["api_key"]}
        ) as client:
            url = f"{desk.gateway.url}/v1/sessions/{opened['id']}/close"
            return await asyncio.gather(*(client.post(url) for _ in range(8)), desk.service.expire())

    *closed, _ = asyncio.run(run())
    assert {response.status_code for response in closed} == {200}
    assert len(desk.stored) == 1


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/sessions", '{"training": "yes"}', "training"),
        ("/sessions", '{"group": ""}', "group"),
        ("/sessions", '{"group": 7}', "group"),
        ("/sessions", '{"metadata": []}', "metadata"),
        ("/sessions", '{"metadata": {"x": NaN}}', "metadata"),
        ("/sessions", '{"grup": "a"}', "grup"),
        ("/sessions/ID/rewards", "{}", "reward"),
        ("/sessions/ID/rewards", '{"reward": NaN}', "reward"),
        ("/sessions/ID/rewards", '{"reward": 1e999}', "reward"),
        ("/sessions/ID/rewards", '{"reward": "1"}', "reward"),
        ("/sessions/ID/rewards", '{"reward": 1, "call": 3}', "call"),
        ("/sessions/ID/rewards", '{"reward": 1, "parts": {"x": null}}', "parts.x"),
        ("/sessions/ID/rewards", '{"reward": 1, "score": 2}', "score"),
        ("/sessions/ID/close", '{"failure": true}', "failure"),
        ("/sessions/ID/close", '{"reward": 1}', "reward"),
        ("/sessions/ID/close", '["x"]', None),
        ("/sessions/ID/close", '{"failure": "\\ud800"}', None),
        ("/sessions", "{", None),
    ],
)
def test_what_is_wrong_is_a_400_that_names_it(desk, path, body, param):
    opened = desk.open()
    response = desk.ask("POST", path.replace("ID", opened["id"]), content=body.encode())
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert desk.ask("GET", f"/sessions/{opened['id']}").json()["state"] == "open"
    assert not desk.stored


def test_the_document_tells_of_it_and_of_nothing_else_than_what_is_read(desk):
    described = desk.ask("GET", "/openapi.json").json()
    assert {path for path in described["paths"] if path.startswith("/sessions")} == {
        "/sessions",
        "/sessions/{id}",
        "/sessions/{id}/calls",
        "/sessions/{id}/rewards",
        "/sessions/{id}/close",
    }
    schemas = described["components"]["schemas"]
    opened = desk.open()
    assert set(schemas["SessionService.OpenedSession"]["properties"]) == set(opened)
    assert set(schemas["SessionService.Session"]["properties"]) == set(desk.close(opened))
    for path, name, valid in (
        ("/sessions", "NewSession", {}),
        ("/sessions/ID/rewards", "NewReward", {"reward": 1}),
        ("/sessions/ID/close", "Closing", {}),
    ):
        for field_ in schemas[f"SessionService.{name}"]["properties"]:
            body = {**valid, field_: {"of": "a type that no field has"}}
            response = desk.ask("POST", path.replace("ID", desk.open()["id"]), json=body)
            known = response.status_code == 201 or response.json()["error"]["code"] != "unknown_parameter"
            assert known, (path, field_)
            for each in desk.ask("GET", "/sessions").json()["data"]:
                desk.close({"id": each["id"], "api_key": ADMIN})
