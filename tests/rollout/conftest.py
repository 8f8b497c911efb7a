"""A gateway whose model answers at once, for tests in which agents run in real worker processes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.rollout.batches import Batches, left_over

from agentrl.gateway import EngineCompleter, Gateway
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer


class InstantBackend:
    """Samples nothing: the same answer, at once."""

    def __init__(self, renderer: Renderer) -> None:
        vocabulary = renderer.vocabulary
        self.ids = (*vocabulary.encode("It is 46."), vocabulary.convert_tokens_to_ids("<|im_end|>"))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        yield Chunk(self.ids, (-0.5,) * len(self.ids), (1,) * len(self.ids), finish="stop")


@pytest.fixture(scope="session")
def instant_gateway(chat_tokenizer) -> Iterator[Gateway]:
    renderer = load_renderer(chat_tokenizer)
    gateway = Gateway(
        EngineCompleter(InstantBackend(renderer), Capabilities(context_length=4096, max_concurrency=64), renderer)
    )
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def batches(instant_gateway, tmp_path) -> Iterator[Batches]:
    """Runs batches of episodes in workers; whatever they start has ended when the test has."""
    before = set(psutil.Process().children(recursive=True))
    yield Batches(instant_gateway, tmp_path)
    assert left_over(tmp_path, before) == []


@pytest.fixture
def agent_file(tmp_path) -> Callable[[str], str]:
    """Writes the source of an agent called ``agent``, and returns its reference."""

    def write(source: str, name: str = "agent") -> str:
        path = tmp_path / "my_agent.py"
        path.write_text(source)
        return f"{path}:{name}"

    return write


@pytest.fixture
def logs(tmp_path) -> Path:
    return tmp_path / "logs"
