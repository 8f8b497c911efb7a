"""``agentrl eval``, ``train`` and ``doctor`` with a model behind an endpoint, as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from agentrl import open_run
from agentrl.cli import main

KEY = "sk-real-0123456789"


class Handler(BaseHTTPRequestHandler):
    """A model that always says 4, for whom temperature 0 may be refused."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((body["model"], self.headers["authorization"]))
        if body["temperature"] == 0 and not self.server.greedy:
            return self.reply(400, {"error": {"message": "temperature must be 1", "param": "temperature"}})
        message = {"role": "assistant", "content": "It is 4."}
        return self.reply(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """The endpoint, in a folder with two tasks, of which the model knows one."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AGENTRL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tasks = [{"question": "2 + 2", "answer": "4"}, {"question": "2 + 3", "answer": "5"}]
    (tmp_path / "two.jsonl").write_text("".join(f"{json.dumps(task)}\n" for task in tasks))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked, server.greedy = [], True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def agentrl(server, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line with that endpoint; returns its exit code, stdout and stderr."""

    def agentrl(*arguments: str) -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        settings = ("inference.backend.name=openai", f"inference.backend.url={url}", "tasks.eval=two.jsonl")
        settings = (*settings, "inference.backend.api_key_env=OPENAI_API_KEY")
        with pytest.raises(SystemExit) as left:
            main((*arguments, *settings))
        captured = capsys.readouterr()
        assert KEY not in captured.out + captured.err
        return left.value.code, captured.out, captured.err

    return agentrl


def test_eval_measures_the_model_that_is_named(agentrl, server):
    code, out, err = agentrl("eval", "agent=math", "inference.backend.model=gpt-4o")
    assert code == 0, err
    *lines, kept = out.splitlines()
    *lines, seconds, used = lines
    assert lines == [
        "math on two.jsonl, 4 episodes, 0 failed",
        "held-out reward, sampled: 0.500",
        "held-out reward, greedy: 0.500",
    ]
    assert seconds.startswith("time: evaluation ")
    assert used.startswith("policy: 5 requests, ")  # The first one asks whether anybody is there.
    folder = Path(kept.removeprefix("episodes: "))
    assert folder.match("runs/math-*-eval")
    assert {episode.reward for episode in open_run(folder).load_episodes()} == {0.0, 1.0}
    assert set(server.asked) == {("gpt-4o", f"Bearer {KEY}")}


def test_eval_tells_the_parts_of_a_reward_and_what_was_rejected(agentrl):
    Path("graded.py").write_text(
        "import agentrl\n"
        "def score(answer, data):\n"
        "    return agentrl.Reward(0.7, format=1.0, correct=0.25)\n"
        "asked = []\n"
        "async def once(data):\n"
        "    asked.append(data)\n"
        "    return 1.0 if data == asked[0] else None\n"
    )
    code, out, err = agentrl("eval", "gpt-4o", "agent=math", "reward=graded.py:score")
    assert code == 0, err
    assert "parts, sampled: correct 0.250, format 1.000" in out
    assert "rejected" not in out
    _, out, err = agentrl("eval", "gpt-4o", "agent=graded.py:once")
    assert "4 episodes, 0 failed, 2 rejected" in out, err


def test_a_model_that_takes_no_temperature_0_has_one_reading(agentrl, server):
    server.greedy = False
    code, out, err = agentrl("eval", "gpt-5", "agent=math", "--json")
    assert code == 0, err
    measured = json.loads(out)
    assert Path(measured.pop("folder")).is_dir()
    assert measured.pop("cost")["evaluation"]["policy"]["requests"] == 4  # Two were refused.
    assert measured == {
        "agent": "math",
        "model": "gpt-5",
        "step": 0,
        "reward": 0.5,
        "reward_greedy": None,
        "episodes": 2,
        "failed": 0,
        "rejected": 0,
        "parts": {},
    }
    assert "warning: model 'gpt-5' does not take temperature 0: no greedy reading" in err
    assert "held-out reward, greedy: not measured" in agentrl("eval", "gpt-5", "agent=math")[1].splitlines()


def test_a_model_on_the_command_line_wins_over_the_file_s(agentrl, server):
    with open("file.yaml", "w") as file:
        file.write("agent: math\nmodel: tiny\ninference: {backend: {model: of-the-file}}\n")
    assert agentrl("eval", "-c", "file.yaml")[0] == 0
    assert agentrl("eval", "here", "-c", "file.yaml")[0] == 0
    assert [model for model, _ in server.asked] == ["of-the-file"] * 5 + ["here"] * 5


def test_settings_that_mean_nothing_at_an_endpoint_are_told(agentrl):
    _, _, err = agentrl("eval", "gpt-4o", "agent=math", "seed=5", "model.renderer=qwen3", "training.steps=2")
    assert "seed (command line) has no effect: an endpoint" in err
    assert "model.renderer (command line) has no effect: an endpoint" in err
    assert err.count("training.steps (command line) has no effect") == 1


def test_two_models_on_the_command_line_are_refused(agentrl, server):
    code, _, err = agentrl("eval", "gpt-4o", "inference.backend.model=gpt-5")
    assert code == 2
    assert "named twice, as 'gpt-4o' and by inference.backend.model='gpt-5' (leave one of them out)" in err
    assert server.asked == []


def test_a_model_that_nobody_has_named_is_asked_for(agentrl, server):
    code, _, err = agentrl("eval", "agent=math")
    assert code == 2
    assert "which of the endpoint's models to measure (name the endpoint's model: agentrl eval MODEL" in err
    assert server.asked == []


def test_an_agent_in_the_model_s_place_is_told_apart(agentrl, server):
    code, _, err = agentrl("eval", "math")
    assert code == 2
    assert "'math' is an agent, and stands where the endpoint's model is named (did you mean agent=math?" in err
    assert server.asked == []
    assert agentrl("eval", "agent=math", "inference.backend.model=math")[0] == 0
    assert {model for model, _ in server.asked} == {"math"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("{stream: null}", "rollout.override.stream cannot be: an override does not change stream"),
        ("{n: 0}", "with rollout.override.n every call would be refused"),
    ],
)
def test_an_override_under_which_no_call_could_be_answered_is_refused_before_the_endpoint_is_asked(
    agentrl, server, override, said
):
    code, _, err = agentrl("eval", "agent=math", "inference.backend.model=gpt-4o", f"rollout.override={override}")
    assert code == 2
    assert said in err
    assert server.asked == []


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_train_refuses_an_endpoint_before_anything_starts(agentrl, server, tmp_path, flags):
    code, _, err = agentrl("train", "math", *flags, "inference.backend.model=gpt-4o")
    assert code == 2
    assert "inference.backend='openai' cannot be trained" in err.splitlines()[-1]
    assert "agentrl eval" in err.splitlines()[-1]
    assert server.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["two.jsonl"]


def test_doctor_has_one_problem_with_an_endpoint(agentrl, server):
    code, out, _ = agentrl("doctor", "math", "model=gpt-4o", "--json")
    assert code == 2
    findings = [finding for section in json.loads(out)["sections"] for finding in section["findings"]]
    (problem,) = [finding for finding in findings if finding["level"] == "problem"]
    assert "'openai' cannot be trained" in problem["text"]
    assert "agentrl eval" in problem["fix"]
    assert server.asked == []


FAILING = """
from openai import AsyncOpenAI

async def agent(data, *, base_url, api_key, http_client):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": data["question"]}]
    made = await client.chat.completions.create(model="m", messages=messages)
    if data["answer"] == "5":
        raise LookupError("no such page: " + made.choices[0].message.content)
    return 1.0
"""


@pytest.mark.parametrize("debug", [False, True])
def test_an_agent_that_fails_is_told_of_with_an_episode_and_in_debug_mode_with_its_traceback(agentrl, tmp_path, debug):
    (tmp_path / "failing.py").write_text(FAILING)
    code, _, err = agentrl(*["--debug"] * debug, "eval", "some-model", "agent=failing.py:agent")
    assert code == 0, err
    assert "2 of 4 episodes failed; commonest: 2x agent: LookupError: no such page: It is 4. at " in err
    assert "[eval-1-1-0]" in err
    assert err.count('raise LookupError("no such page: "') == debug


def test_serve_passes_sessions_on_to_the_model_that_is_named(server, tmp_path, warm):
    """What they ask and what they earn is kept; tokens there are none."""
    options = ("--model", "gpt-4o", "--backend", "openai", "--port", "0", "--json", "run.name=served")
    url = f"inference.backend.url=http://127.0.0.1:{server.server_port}/v1"
    environ = {**os.environ, "AGENTRL_ADMIN_KEY": "an-admin-key"}
    process = warm.start("serve", *options, url, cwd=tmp_path, environ=environ, stdout=subprocess.PIPE)
    try:
        service = json.loads(process.stdout.readline())["url"]
        with httpx2.Client(verify=False, trust_env=False, timeout=60) as client:
            opened = client.post(f"{service}/v1/sessions", headers={"x-api-key": "an-admin-key"}).json()
            own = {"x-api-key": opened["api_key"]}
            body = {"messages": [{"role": "user", "content": "2 + 2"}]}
            answer = client.post(f"{opened['base_url']}/chat/completions", json=body, headers=own).json()
            assert answer["choices"][0]["message"]["content"] == "It is 4."
            rewards = f"{service}/v1/sessions/current/rewards"
            assert client.post(rewards, json={"reward": 1, "call": answer["id"]}, headers=own).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()
    (episode,) = open_run(tmp_path / "runs/served").load_episodes()
    assert (episode.reward, list(episode.call_rewards)) == (1.0, [answer["id"]])
    assert server.asked[-1][0] == "gpt-4o"
