"""A run that serves sessions and learns from them: people open, use, reward and leave them while its weights change."""

from __future__ import annotations

import io
import os
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import openai
import pytest

from agentrl import Trainer, load_config
from agentrl.errors import ConfigError, RunError
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import Summary
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore

ADMIN = "an-admin-key-that-is-long-enough"
ASK = [{"role": "user", "content": "What is 12 + 34?"}]
SMALL = ("rollout.tasks_per_step=1", "rollout.group_size=4", "rollout.max_tokens=6", "run.name=online")


class Heard(PlainReporter):
    """Tells people where the service is, and when a step is over."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.notes: list[str] = []
        self.urls: queue.Queue[str] = queue.Queue()
        self.steps: queue.Queue[int] = queue.Queue()

    def note(self, text: str) -> None:
        self.notes.append(text)
        if " is served at " in text:
            self.urls.put(text.partition(" is served at ")[2].split()[0])

    def activity_started(self, name: str, episodes: int | None = None) -> None:
        super().activity_started(name, episodes)
        if name == "serving sessions":
            self.steps.put(0)  # The step before is over, and its weights are served.


@dataclass
class People:
    """Whoever uses the service."""

    url: str
    heard: Heard
    http: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx2.Client(base_url=f"{self.url}/v1", verify=False, trust_env=False, timeout=60)

    def post(self, path: str, key: str = ADMIN, **body: object) -> dict:
        done = self.http.post(path, json=body, headers={"x-api-key": key})
        assert done.is_success, done.text
        return done.json()

    def open(self, **body: object) -> dict:
        return self.post("/sessions", **body)

    def ask(self, session: dict, messages: list | None = None) -> str:
        with openai.OpenAI(base_url=session["base_url"], api_key=session["api_key"]) as client:
            reply = client.chat.completions.create(model="policy", messages=messages or ASK)
        return reply.choices[0].message.content or ""

    def reward(self, session: dict, reward: float) -> dict:
        self.post("/sessions/current/rewards", session["api_key"], reward=reward)
        return self.close(session)

    def close(self, session: dict) -> dict:
        return self.post("/sessions/current/close", session["api_key"])

    def come(self, reward: float, **body: object) -> dict:
        session = self.open(**body)
        self.ask(session)
        self.reward(session, reward)
        return session

    def state(self, session: dict) -> str:
        told = self.http.get("/sessions/current", headers={"x-api-key": session["api_key"]})
        return str(told.json()["state"])

    def step_is_over(self) -> None:
        """Return once new weights are served."""
        self.heard.steps.get(timeout=120)


@dataclass
class Served:
    summary: Summary
    run: Run
    notes: list[str]
    sessions: dict[str, dict]

    def episode(self, name: str) -> Episode:
        return self.run.episode(self.sessions[name]["episode"])

    def counted(self, name: str) -> list[float]:
        return [line.metrics[name] for line in self.run.metrics() if name in line.metrics]


def serve(folder: Path, use: Callable[[People], dict[str, dict]], *settings: str) -> Served:
    """A run in ``folder`` that people ``use`` until it ends; what goes wrong with them ends it too."""
    config = load_config(None, "agent=online", "serve.port=0", *SMALL, f"run.dir={folder}", *settings, environ={})
    heard, sessions, wrong = Heard(), {}, []

    def come() -> None:
        try:
            people = People(heard.urls.get(timeout=120), heard)
            people.step_is_over()  # What comes first is the beginning of the first.
            sessions.update(use(people))
            people.http.close()
        except BaseException as error:
            wrong.append(error)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=come)
    thread.start()
    try:
        with Trainer(config, reporter=heard) as trainer:
            summary = trainer.train()
    finally:
        heard.urls.put("http://gateway.invalid")  # Nobody waits for a service that has not begun.
        heard.steps.put(0)
        thread.join(60)
    if wrong:
        raise wrong[0]
    return Served(summary, Run(folder / "online"), heard.notes, sessions)


@pytest.fixture(scope="module")
def monkeypatched() -> pytest.MonkeyPatch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTRL_ADMIN_KEY", ADMIN)
        yield patch


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatched: pytest.MonkeyPatch) -> Served:
    """Three steps, of four rewarded sessions each, in which people do all that they may."""

    def use(people: People) -> dict[str, dict]:
        named = {"long": people.open(), "old": people.open()}
        first = people.ask(named["long"])
        people.ask(named["old"])
        for number in range(4):
            named[f"alone {number}"] = people.come(number % 2)
        people.step_is_over()
        history = [*ASK, {"role": "assistant", "content": first}, {"role": "user", "content": "Sure?"}]
        people.ask(named["long"], history)
        people.reward(named["long"], 1.0)
        for number in range(3):
            named[f"grouped {number}"] = people.come(number % 2, group="sums")
        named["rejected"] = people.open(group="sums")
        people.close(named["rejected"])
        people.step_is_over()
        people.reward(named["old"], 1.0)
        named["left"] = left = people.open()
        with (
            openai.OpenAI(base_url=left["base_url"], api_key=left["api_key"]) as client,
            client.chat.completions.create(model="policy", messages=ASK, stream=True) as stream,
        ):
            next(iter(stream))
        people.ask(left)
        people.reward(left, 0.0)
        named["eval"] = people.come(1.0, training=False)
        named["forgotten"] = people.open()
        people.ask(named["forgotten"])
        people.come(1.0, group="small")
        people.come(0.0, group="small")
        assert people.post("/groups/close", group="small") | {"object": ""} == {
            "object": "",
            "group": "small",
            "sessions": 2,
            "open": 0,
        }
        people.come(1.0)
        return named

    settings = ("rollout.max_staleness=1", "rollout.on_stale=drop", "training.steps=3")
    return serve(tmp_path_factory.mktemp("runs"), use, *settings)


def versions(episode: Episode) -> list[int]:
    return [version for span in episode.tree.spans if span.sampled for version in span.sampled.versions]


def test_a_step_fires_at_so_many_rewarded_sessions(served: Served):
    assert (served.summary.outcome, served.summary.steps) == ("completed", 3)
    assert [served.episode(f"alone {number}").trained_step for number in range(4)] == [1] * 4
    assert served.counted("rollout/episodes") == [4, 5, 4]
    assert served.summary.checkpoint is not None


def test_sessions_with_one_group_id_are_a_group_and_others_each_their_own(served: Served):
    grouped = [served.episode(f"grouped {number}") for number in range(3)]
    rejected = served.episode("rejected")
    assert [each.key.sample for each in (*grouped, rejected)] == [0, 1, 2, 3]
    assert len({each.key.group for each in (*grouped, rejected)}) == 1
    assert [each.trained_step for each in grouped] == [2] * 3
    assert rejected.outcome == "rejected"
    assert len({served.episode(f"alone {number}").key.group for number in range(4)}) == 4


def test_a_session_goes_on_through_an_update_and_its_tokens_tell(served: Served):
    episode = served.episode("long")
    assert set(versions(episode)) == {0, 1}
    assert (episode.version, episode.trained_step) == (0, 2)
    assert served.counted("staleness/max")[:2] == [0.0, 1.0]


def test_a_session_that_is_beyond_the_bound_is_dropped_and_counted(served: Served):
    assert set(versions(served.episode("old"))) == {0}
    assert served.episode("old").trained_step is None
    assert served.counted("ledger/stale") == [0.0, 0.0, 1.0]
    assert max(served.counted("staleness/max")) <= 1


def test_a_client_that_leaves_harms_nobody(served: Served):
    episode = served.episode("left")
    assert [call.delivered for call in episode.calls][-1]
    assert episode.trained_step == 3


def test_what_is_not_for_training_is_kept_and_trains_nothing(served: Served):
    episode = served.episode("eval")
    assert (episode.key.phase, episode.trained_step) == ("eval", None)


def test_sessions_that_are_open_at_the_end_are_kept(served: Served):
    episode = served.episode("forgotten")
    assert (episode.outcome, episode.trained_step) == ("failed", None)
    assert "stopped" in str(episode.failure)
    ledger = served.summary.ledger
    assert (ledger["received"], ledger["unfinished"], ledger["stale"]) == (15, 1, 1)


def test_the_metrics_count_sessions(served: Served):
    assert served.counted("sessions/opened")[0] == 6.0
    assert served.counted("sessions/closed")[0] == 4.0
    assert served.counted("sessions/open")[0] == 2.0


def test_it_is_said_where_it_serves_and_that_nothing_is_evaluated(served: Served):
    assert any("learns from rewarded sessions" in note for note in served.notes)
    assert any("nothing is evaluated" in note for note in served.notes)
    assert not any("admin key" in note for note in served.notes), "nobody is told a key that somebody has set"
    text = (served.run.path / "logs/run.log").read_text() + (served.run.path / "config.yaml").read_text()
    assert ADMIN not in text


def test_sessions_that_nobody_rewards_expire_and_are_counted(tmp_path: Path, monkeypatched: pytest.MonkeyPatch):
    def use(people: People) -> dict[str, dict]:
        named = {"unrewarded": people.open(), "rewarded": people.open()}
        people.ask(named["unrewarded"])
        people.ask(named["rewarded"])
        people.post("/sessions/current/rewards", named["rewarded"]["api_key"], reward=1.0)
        while people.state(named["unrewarded"]) != "expired" or people.state(named["rewarded"]) != "expired":
            threading.Event().wait(0.1)
        for number in range(3):
            people.come(number % 2)
        return named

    served = serve(tmp_path, use, "serve.idle=2", "training.steps=1")
    assert served.episode("rewarded").trained_step == 1, "one with a reward is trained, whoever closes it"
    assert "expired" in str(served.episode("unrewarded").failure)
    assert served.counted("sessions/unrewarded") == [1.0]
    assert served.counted("sessions/expired") == [2.0]
    assert served.counted("ledger/failed") == [1.0]
    assert served.summary.failed == 1


def test_a_session_that_cannot_be_stored_stops_the_run_and_its_client_is_told(
    tmp_path: Path, monkeypatched: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
):
    async def full(store: EpisodeStore, episodes: object) -> None:
        raise RunError("the disk is full", fix="free some space")

    refused: list[httpx2.Response] = []

    def use(people: People) -> dict[str, dict]:
        monkeypatch.setattr(EpisodeStore, "commit", full)
        session = people.open()
        people.ask(session)
        refused.append(people.http.post("/sessions/current/close", headers={"x-api-key": session["api_key"]}))
        return {}

    with pytest.raises(RunError, match="the disk is full"):
        serve(tmp_path, use)
    assert (refused[0].status_code, refused[0].json()["error"]["code"]) == (503, "not_stored")


def test_nobody_can_be_waited_for(tmp_path: Path):
    config = load_config(None, "agent=online", "rollout.on_stale=wait", f"run.dir={tmp_path}", environ={})
    with (
        Trainer(config, reporter=Heard()) as trainer,
        pytest.raises(ConfigError, match="whom nobody can hurry") as wrong,
    ):
        trainer.train()
    assert "mask" in str(wrong.value.fix)
    assert list(tmp_path.iterdir()) == []


def test_it_cannot_be_measured_as_an_agent(tmp_path: Path):
    config = load_config(None, "agent=online", "tasks.eval=arithmetic-heldout", f"run.dir={tmp_path}", environ={})
    with Trainer(config, reporter=Heard()) as trainer, pytest.raises(ConfigError, match="no agent that could be run"):
        trainer.evaluate()
