"""Real clients' requests, replayed: the tool loop that each of them played is one chain of the tree.

``python -m tests.acceptance.clients --record tests/gateway/recordings`` writes them anew, from the clients themselves.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.contract import Exchange, Reply
from agentrl.gateway.gateway import registered_dialects
from agentrl.inference.contract import Capabilities
from agentrl.plugins import Plugins
from agentrl.testing import ScriptedBackend

RECORDINGS = sorted(Path(__file__).with_name("recordings").glob("*.json"))
CONTEXT = 2**20
ID = re.compile(r"call_[0-9a-f]{24}_\d+")


async def read(reply: Reply) -> bytes:
    """The whole body of a reply, streamed or not."""
    if isinstance(reply.body, bytes):
        return reply.body
    parts = [part async for part in reply.body]
    await reply.body.aclose()
    return b"".join(parts)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_loop_of_a_client_is_one_chain(path):
    recorded = json.loads(path.read_text())
    backend = ScriptedBackend(recorded["script"], context_length=CONTEXT)
    sampling = Capabilities(1, 1).sampling | {"grammar"}  # The script is what a grammar would have it be.
    completer = EngineCompleter(backend, Capabilities(CONTEXT, 8, sampling=sampling), backend.renderer)
    gateway = Gateway(completer, registered_dialects(Plugins(), pytest.fail))
    session = gateway.open_session(SessionSettings(training=True))

    async def replay() -> None:
        known = list(dict.fromkeys(ID.findall(json.dumps(recorded["requests"]))))
        for request in recorded["requests"]:
            headers = {**request["headers"], "authorization": f"Bearer {session.api_key}"}
            body = json.dumps(request["body"])
            given = [made["id"] for call in session.calls for made in call.message.get("tool_calls") or ()]
            for old, new in zip(known, given, strict=False):  # Some clients write ids into texts.
                body = body.replace(old, new)
            reply = await gateway.answer(Exchange("POST", f"/v1{request['path']}", body.encode(), headers))
            assert reply.status == 200, await read(reply)
            await read(reply)

    asyncio.run(replay())
    loop = [call for call in session.calls if call.message.get("tool_calls") or call.parent]
    assert len(loop) == len(recorded["script"])
    assert [call.parent for call in loop] == [None, *(call.id for call in loop[:-1])]
    assert [call.fork_reason for call in loop] == [None] * len(loop)
    own = {call.id for call in loop}
    assert len([span for span in session.tree.spans if span.sampled and span.sampled.call in own]) == len(loop)
    session.close()


def test_there_are_recordings_of_every_protocol():
    asked = {request["path"] for path in RECORDINGS for request in json.loads(path.read_text())["requests"]}
    assert {"/chat/completions", "/responses", "/messages"} <= asked
