"""``agentrl serve`` as a process: the SDK's clients, keys that are told once, limits, signals, and what it keeps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from tests.snippets import snippets
from tests.warm import WarmInterpreter, WarmProcess

from agentrl.cli import main
from agentrl.runs.reader import open_run

ASK = [{"role": "user", "content": "What is 12 + 34?"}]
ADMIN = "an-admin-key-that-is-long-enough"


@dataclass
class Served:
    """A service that is running."""

    process: WarmProcess
    folder: Path
    url: str
    run: Path
    http: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx2.Client(base_url=self.url, verify=False, trust_env=False, timeout=60)

    @property
    def narration(self) -> str:
        return (self.folder / "stderr").read_text()

    def open(self, **body: object) -> dict:
        opened = self.http.post("/v1/sessions", json=body, headers={"x-api-key": ADMIN})
        assert opened.status_code == 201, opened.text
        return opened.json()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, warm: WarmInterpreter) -> Iterator[Serve]:
    """``serve(*arguments)`` starts the command with a free port, and waits until clients can connect."""
    started: list[WarmProcess] = []
    running: list[Served] = []

    def serve(*arguments: str, admin_key: str = ADMIN) -> Served:
        environ = {**os.environ, "AGENTRL_ADMIN_KEY": admin_key}
        with (tmp_path / "stderr").open("w") as narration:
            command = ("serve", "--model", "tiny", "--port", "0", "--json", *arguments)
            process = warm.start(*command, cwd=tmp_path, environ=environ, stdout=subprocess.PIPE, stderr=narration)
        started.append(process)
        line = process.stdout.readline()
        assert line, (tmp_path / "stderr").read_text()
        ready = json.loads(line)
        assert ready["model"] == "tiny"
        running.append(Served(process, tmp_path, ready["url"], tmp_path / ready["run"]))
        return running[-1]

    yield serve
    for process in started:
        process.kill()
        process.wait(30)
        process.stdout.close()
    for served in running:
        served.http.close()


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_several_clients_at_once_are_recorded_and_what_they_earned_is_in_the_run_folder(serve: Serve) -> None:
    served = serve("run.name=shop", "rollout.max_tokens=8")

    async def agent(number: int) -> tuple[dict, list[str]]:
        opened = await asyncio.to_thread(served.open, group="sums", metadata={"number": number})
        async with openai.AsyncOpenAI(base_url=opened["base_url"], api_key=opened["api_key"]) as client:
            first = await client.chat.completions.create(model="any", messages=ASK)
            history = [*ASK, first.choices[0].message.model_dump(), {"role": "user", "content": "Sure?"}]
            ids = [first.id]
            async for chunk in await client.chat.completions.create(model="any", messages=history, stream=True):
                ids.append(chunk.id)
        rewarded = await asyncio.to_thread(
            served.http.post,
            f"/v1/sessions/{opened['id']}/rewards",
            json={"reward": number / 4},
            headers={"x-api-key": opened["api_key"]},
        )
        assert rewarded.status_code == 200, rewarded.text
        return opened, sorted(set(ids))

    async def all_of_them() -> list[tuple[dict, list[str]]]:
        return await asyncio.gather(*map(agent, range(4)))

    done = asyncio.run(all_of_them())
    for opened, _ in done[:2]:
        path = f"/v1/sessions/{opened['id']}/close"
        assert served.http.post(path, headers={"x-api-key": opened["api_key"]}).json()["outcome"] == "rewarded"
    assert served.end(signal.SIGINT) == 130
    summary = json.loads(served.process.stdout.read())
    assert (summary["outcome"], summary["episodes"]) == ("completed", 4)
    run = open_run(served.run)
    assert (run.name, run.summary.episodes) == ("shop", 4)
    for opened, ids in done:
        episode = run.episode(opened["episode"])
        number = episode.data["metadata"]["number"]
        assert (episode.reward, episode.data["session"]) == (number / 4, opened["id"])
        assert sorted(call.id for call in episode.calls) == ids
        assert episode.calls[1].parent == episode.calls[0].id
        assert {span.sampled.call for span in episode.tree.spans if span.sampled} == set(ids)


def test_keys_are_neither_narrated_nor_kept(serve: Serve) -> None:
    served = serve("training.steps=3", "rollout.group_size=2", "rollout.temperature=0.5")
    opened = served.open()
    capture = urlsplit(opened["base_url"]).path.split("/")[1]
    with openai.OpenAI(base_url=opened["base_url"], api_key=opened["api_key"]) as client:
        client.chat.completions.create(model="any", messages=ASK)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="any", messages=ASK, extra_body={"no_such_field": 1})
    served.http.get(f"/{capture}/v1/nowhere", headers={"authorization": f"Bearer {ADMIN}"})
    served.http.post("/v1/sessions/current/close", headers={"x-api-key": opened["api_key"]})
    assert served.end(signal.SIGTERM) == 0
    kept = everything_in(served.folder)
    for secret in (ADMIN, opened["api_key"], capture):
        assert secret.encode() not in kept
        assert secret.encode()[-20:] not in kept
    assert "admin key" not in served.narration
    assert "training.steps (command line) has no effect: the agents are run elsewhere" in served.narration
    assert "rollout.group_size" in served.narration
    assert "rollout.temperature" not in served.narration


def test_the_script_of_the_documentation_opens_asks_rewards_and_closes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (script,) = [each for each in snippets("python") if each.page == "serve.md"]
    served = serve()
    monkeypatch.setenv("AGENTRL_ADMIN_KEY", ADMIN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    names: dict[str, object] = {}
    exec(script.text.replace("http://127.0.0.1:8000", served.url), names)
    names["service"].close()
    assert "'outcome': 'rewarded'" in capsys.readouterr().out
    assert served.end(signal.SIGTERM) == 0
    (episode,) = open_run(served.run).load_episodes()
    assert episode.data["metadata"] == {"answer": 46}


def test_without_an_admin_key_one_is_made_and_told_once_and_idle_sessions_expire_and_are_counted(serve: Serve) -> None:
    served = serve("--idle", "0.2", admin_key="")
    (line,) = [line for line in served.narration.splitlines() if line.startswith("admin key")]
    key = line.rpartition(" ")[2]
    assert len(key) >= 43
    assert served.http.post("/v1/sessions").status_code == 401
    admin = {"authorization": f"Bearer {key}"}
    assert served.http.post("/v1/sessions", headers=admin).status_code == 201
    ends = time.monotonic() + 30
    while (counts := served.http.get("/v1/sessions", headers=admin).json()["counts"])["open"]:
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert counts == {"open": 0, "opened": 1, "closed": 0, "expired": 1}
    assert served.end(signal.SIGTERM) == 0
    summary = json.loads(served.process.stdout.read())
    assert (summary["episodes"], summary["failed"]) == (1, 1)
    assert "expired" in summary["reasons"]["failed"][0]["reason"]
    assert key.encode() not in everything_in(served.run)


def test_limits_of_the_command_line_hold(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limits = ("--max-sessions", "1", "--max-body", "0.001", "--max-header", "2", "--header-timeout", "0.5")
    served = serve(*limits, "--port", str(port), "--url", f"http://localhost:{port}/")
    assert served.url == f"http://localhost:{port}"
    opened = served.open()
    assert opened["base_url"].startswith(f"http://localhost:{port}/capture-")
    assert served.http.post("/v1/sessions", headers={"x-api-key": ADMIN}).status_code == 429
    url = f"{opened['base_url']}/chat/completions"
    assert served.http.post(url, content=b"x" * 2000).status_code == 413
    assert served.http.post(url, headers={"x-long": "x" * 3000}).status_code == 431
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as slow:
        slow.sendall(b"POST /v1/sessions HTTP/1.1\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
    served.http.post("/v1/sessions/current/close", headers={"x-api-key": opened["api_key"]})
    assert served.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        (["--host", "0.0.0.0"], "", "serve.host=0.0.0.0 lets other machines in, and nobody has set an admin key"),
        (["--host", "::"], "short", "the admin key has 5 characters"),
        (["--host", "no.such.host.invalid"], ADMIN, "serve.host=no.such.host.invalid is no address"),
        (["tiny", "--model", "tiny"], ADMIN, "the model is named twice"),
        (["rollout.override={stream: true}"], ADMIN, "an override does not change stream"),
        (["--model", "no-such-model"], ADMIN, "no-such-model"),
        (["--port", "70000"], ADMIN, "70000"),
        (["--url", "agents.example.com"], ADMIN, "serve.url='agents.example.com' is not where clients can reach"),
        (["--body-timeout", "nan"], ADMIN, "nan is not a number"),
        (["--backend", "openai"], ADMIN, "which of the endpoint's models to serve (name the endpoint's model: --model"),
    ],
)
def test_what_cannot_be_served_is_a_usage_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    key: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTRL_ADMIN_KEY", key)
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_port_that_is_taken_is_an_error_that_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["serve", "--model", "tiny", "--port", str(number)])
    assert ended.value.code == 2
    assert f"port {number}: " in capsys.readouterr().err


def test_with_a_certificate_the_service_and_its_sessions_speak_tls(serve):
    files = Path(__file__).parents[1] / "gateway" / "certificates"
    served = serve(f"gateway.certificate={files / 'certificate.pem'}", f"gateway.certificate_key={files / 'key.pem'}")
    opened = served.open()
    assert served.url.startswith("https://127.0.0.1:")
    assert opened["base_url"].startswith(served.url)
    answer = served.http.post(
        f"{opened['base_url']}/chat/completions",
        json={"messages": ASK, "max_tokens": 4},
        headers={"authorization": f"Bearer {opened['api_key']}"},
    )
    assert answer.status_code == 200, answer.text
