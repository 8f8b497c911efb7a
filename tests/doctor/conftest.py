"""Examinations of small cases, with what they told on the way, and a site-packages folder to break."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from agentrl.config import resolve_config
from agentrl.doctor.examination import Case, examine
from agentrl.doctor.report import Diagnosis, Finding, Section
from agentrl.plugins import Plugins

SMALL = ("rollout.tasks_per_step=2", "rollout.group_size=4", "rollout.episode_timeout=20", "inference.timeout=60")
AGENTS = """
import asyncio
from openai import AsyncOpenAI, OpenAI

async def ask(text, base_url, api_key, http_client, **fields):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": text}]
    return await client.chat.completions.create(model="m", messages=messages, **fields)

async def silent(data):
    return 1.0

async def raises(data, *, base_url, api_key, http_client):
    await ask(data["question"], base_url, api_key, http_client)
    raise LookupError("no such tool")

async def hangs(data):
    await asyncio.Event().wait()

async def constant(data, *, base_url, api_key, http_client):
    print("hello from the agent")
    await ask(data["question"], base_url, api_key, http_client)
    return 0.5

async def rejects(data, *, base_url, api_key, http_client):
    await ask(data["question"], base_url, api_key, http_client)

async def cuts(data, *, base_url, api_key, http_client):
    await ask(data["question"], base_url, api_key, http_client, max_tokens=1)
    return float(len(data["question"]) % 2)

async def asks(data, *, base_url, api_key, http_client):
    await ask(data["question"], base_url, api_key, http_client, verbosity="low")
    return float(len(data["question"]) % 2)

async def strict(data, *, base_url, api_key, http_client):
    tool = {"type": "function", "function": {"name": "add", "strict": True, "parameters": {"type": "object"}}}
    await ask(data["question"], base_url, api_key, http_client, tools=[tool])
    return float(len(data["question"]) % 2)

async def reshapes(data, *, base_url, api_key, http_client):
    await ask(data["question"], base_url, api_key, http_client, top_p=0.5)
    return 1.0

async def verbose(data, *, base_url, api_key, http_client):
    await ask("1 + 1 is 2. " * 2000, base_url, api_key, http_client)

async def wordy(data, *, base_url, api_key, http_client):
    await ask("1 + 1 is 2. " * 102, base_url, api_key, http_client, max_tokens=50)
    return 1.0

def reads_environment(data):
    reply = OpenAI().chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])
    print(reply)
    return float(str(data["answer"]) in (reply.choices[0].message.content or ""))

class Forgetful:
    async def run(self, data, *, base_url, api_key, http_client):
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages = [{"role": "user", "content": data["question"]}]
        for answer in ("one", "two"):
            await client.chat.completions.create(model="m", messages=messages)
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "again"}]
        return 1.0

class Flaky:
    count = 0

    async def run(self, data, *, base_url, api_key, http_client):
        await ask(data["question"], base_url, api_key, http_client)
        Flaky.count += 1
        if Flaky.count > 1:
            raise RuntimeError("out of luck")
        return 1.0
"""
BACKENDS = """
from dataclasses import replace
from agentrl.inference.engine.backend import TorchBackend

class NoLogprobs(TorchBackend):
    async def generate(self, request):
        async for chunk in super().generate(request):
            yield replace(chunk, logprobs=())

class OfTemperatureOne(TorchBackend):
    "Draws at the temperature that is asked for, and gives the logprobs of temperature 1."
    async def generate(self, request):
        plain = replace(request, sampling=replace(request.sampling, temperature=1.0))
        async for chunk in super().generate(plain):
            yield chunk

class Frozen(TorchBackend):
    async def start(self):
        return replace(await super().start(), trains=False)

class Cool(TorchBackend):
    async def start(self):
        return replace(await super().start(), temperatures=(0.01, 0.5))

class KeepsOldWeights(TorchBackend):
    async def update_weights(self, weights):
        "Takes none."

class Raises(TorchBackend):
    async def generate(self, request):
        raise ValueError("no engine")
        yield

class Unsteady(TorchBackend):
    "Fails at an agent's first call now and then."
    seen = set()

    async def generate(self, request):
        if request.session is not None and request.session not in self.seen:
            self.seen.add(request.session)
            if len(self.seen) % 3 == 0:
                raise ValueError("lost")
        async for chunk in super().generate(request):
            yield chunk

class TellsOfItsStart(TorchBackend):
    def __init__(self, context):
        super().__init__(context)
        self.context = context

    async def start(self):
        self.context.say("server 0: loading the weights")
        return await super().start()

class RaisesAtTheEnd(TorchBackend):
    async def stop(self):
        await super().stop()
        raise ValueError("no end")
"""


@dataclass
class Told:
    """A watcher that remembers."""

    activities: list[str] = field(default_factory=list)
    found_in: list[tuple[str, Finding]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def doing(self, section: Section, what: str) -> None:
        self.activities.append(f"{section.name}: {what}")

    def found(self, section: Section, finding: Finding) -> None:
        self.found_in.append((section.name, finding))

    def raised(self, error: Exception) -> None:
        self.errors.append(error)

    def interrupted(self) -> None:
        raise AssertionError("nobody has pressed Ctrl-C")

    left = interrupted

    def stuck(self, diagnosis: Diagnosis) -> None:
        raise AssertionError(f"stuck: {diagnosis.to_json()}")


@dataclass
class Examined:
    """What an examination came to."""

    diagnosis: Diagnosis
    told: Told

    def levels(self) -> dict[str, set[str]]:
        """Levels of the findings of each section."""
        return {section.name: {each.level for each in section.findings} for section in self.diagnosis.sections}

    def found(self, section: str) -> list[Finding]:
        """What is not well in ``section``."""
        return [each for name, each in self.told.found_in if name == section and each.level in ("warning", "problem")]

    def only(self, level: str, section: str) -> Finding:
        """The one finding of ``level``, which must be in ``section``."""
        ((name, finding),) = [(name, each) for name, each in self.told.found_in if each.level == level]
        assert name == section, finding
        return finding


Examine = Callable[..., Examined]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with agents and backends; nothing of the user's own settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AGENTRL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTRL_ENVIRONMENTS", str(tmp_path / "environments"))
    (tmp_path / "agents.py").write_text(AGENTS)
    (tmp_path / "backends.py").write_text(BACKENDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty site-packages folder, the first on the path."""
    folder = tmp_path / "site"
    folder.mkdir()
    modules, path = set(sys.modules), list(sys.path)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def examined() -> Examine:
    """Examine an agent with settings, small ones by default."""

    def run(agent: str = "math", *settings: str, disabled: tuple[str, ...] = ()) -> Examined:
        told = Told()
        resolved = resolve_config(None, *SMALL, *settings, environ={}, agent=agent)
        return Examined(examine(Case(resolved, Plugins(disabled)), told), told)

    return run


@pytest.fixture
def plugin_findings(examined: Examine) -> Callable[..., list[Finding]]:
    """What is not well with the plugins, without what comes after them: there is no such model."""

    def run(agent: str = "math", *settings: str) -> list[Finding]:
        return examined(agent, "model=no-such-model", *settings).found("plugins")

    return run
