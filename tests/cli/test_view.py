"""``agentrl view`` as a process: the address that it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from agentrl.cli import main
from agentrl.config import load_config
from agentrl.runs.folder import RunFolder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two runs."""
    for name in ("one", "another"):
        RunFolder.create(load_config(None, f"run.dir={tmp_path / 'runs'}", f"run.name={name}", environ={}))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "path", "number"),
    [((), "/", signal.SIGINT), (("one", "--token", "auto"), "/runs/one", signal.SIGTERM)],
)
def test_it_serves_until_it_is_ended_and_ends_without_a_word(
    place: Path, arguments: tuple[str, ...], path: str, number: int
):
    with (place / "stderr").open("w") as narration:
        command = [sys.executable, "-m", "agentrl", "view", "--json", *arguments]
        process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=narration, text=True)
    assert process.stdout is not None
    try:
        told = json.loads(process.stdout.readline())
        url = urlsplit(told["url"])
        assert (url.hostname, url.path) == ("127.0.0.1", path)
        with httpx.Client(base_url=f"http://{url.netloc}", follow_redirects=True, trust_env=False) as browser:
            if url.query:
                assert browser.get(path).status_code == 401
            shown = browser.get(told["url"])
            assert shown.status_code == 200
            assert url.query not in str(shown.url) or not url.query
            assert ">one</a>" in shown.text
            assert browser.get("/", headers={"host": "evil.example"}).status_code == 403
            process.send_signal(number)  # With a connection that is still open.
            assert process.wait(30) == 0
        left = process.stdout.read() + (place / "stderr").read_text()
        assert "Traceback" not in left
        assert url.query not in left or not url.query
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((url.hostname, url.port), 5)
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["onee"], "did you mean 'one'?"),
        (["runs/anothr"], "did you mean 'another'?"),
        (["--host", "0.0.0.0"], "--token auto"),
        (["--token", "short"], "at least 16"),
        (["--token", ""], "has 0 characters"),
        ([""], "an empty text names no run"),
        (["--host", "no.such.host.invalid", "--token", "auto"], "cannot be served at no.such.host.invalid"),
        (["--port", "99999"], "0<=x<=65535"),
        (["--prot", "1"], "--port"),
    ],
)
def test_what_it_refuses_is_said_with_the_fix(
    place: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as left:
        main(["view", *arguments])
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert said in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_port_that_is_taken_is_said(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(place)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit):
        main(["view", "--port", str(other.getsockname()[1])])
    assert "leave --port out" in capsys.readouterr().err


def test_a_token_of_the_environment_is_asked_for_and_is_no_key_of_the_config(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    monkeypatch.setenv("AGENTRL_VIEW_TOKEN", "short")
    with pytest.raises(SystemExit):
        main(["view"])
    assert "at least 16" in capsys.readouterr().err
    assert load_config(None, environ=dict(os.environ)).run.dir == Path("runs")
