"""Dialects that break one promise each: the chat completions API with something wrong about it."""

from __future__ import annotations

import copy
from dataclasses import replace

from tests.gateway.readers import read_chat

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Completion, Reply, Route
from agentrl.gateway.dialects.chat import ChatCompletions

ASK = {"messages": [{"role": "user", "content": "What is 12 * 34?"}]}


class Plain:
    """What the suite is told of each of them."""

    asks = (ASK,)
    streams = True

    @classmethod
    def read(cls, body, *, streamed):
        return read_chat(body, streamed=streamed)


class Lenient(ChatCompletions):
    """Leaves out what it does not know."""

    def parse(self, request):
        known = set(super().describe()["components"]["schemas"]["ChatRequest"]["properties"])
        body = {name: value for name, value in request.body.items() if name in known}
        return [replace(each, body=request.body) for each in super().parse(replace(request, body=body))]


class Anonymous(ChatCompletions):
    """Does not say which field it does not know."""

    def parse(self, request):
        try:
            return super().parse(request)
        except GatewayError:
            raise GatewayError("there is something wrong") from None


class Careless(ChatCompletions):
    """Takes every list for one of messages."""

    def parse(self, request):
        request.body["messages"][0]["role"]
        return super().parse(request)


class Terse(ChatCompletions):
    """Leaves out how to mend what is wrong."""

    def refuse(self, error):
        return super().refuse(GatewayError(error.message, status=error.status))


class Forgetful(ChatCompletions):
    """Does not count what an override changes."""

    def override(self, body, override):
        return super().override(body, override)[0], ()


class Stubborn(ChatCompletions):
    """Drops nothing."""

    def override(self, body, override):
        return super().override(body, {name: value for name, value in override.items() if value is not None})


class Mute(ChatCompletions):
    """Writes no text."""

    def respond(self, request, asked, completions):
        silent = [replace(each, call=replace(each.call, message={"role": "assistant"})) for each in completions]
        return super().respond(request, asked, silent)


class _Rewritten(ChatCompletions):
    def stream(self, request, asked, events):
        written = super().stream(request, asked, events)
        return replace(written, body=self.rewritten(written.body))


class Patient(_Rewritten):
    """Writes nothing before all is there."""

    async def rewritten(self, parts):
        yield b"".join([part async for part in parts])


class Garrulous(_Rewritten):
    """Adds a part at the end."""

    async def rewritten(self, parts):
        async for part in parts:
            yield part
        yield b": goodbye\n\n"


class Lossy(ChatCompletions):
    """Leaves out every second delta."""

    def stream(self, request, asked, events):
        async def some():
            number = 0
            async for event in events:
                number += 1
                if isinstance(event, Completion) or number % 2:
                    yield event

        return super().stream(request, asked, some())


class Brittle(ChatCompletions):
    """Lets an error end the stream."""

    def stream(self, request, asked, events):
        async def body():
            broken = None

            async def until():
                nonlocal broken
                try:
                    async for event in events:
                        yield event
                except GatewayError as error:
                    broken = error

            async for part in ChatCompletions.stream(self, request, asked, until()).body:
                yield part
            if broken is not None:
                raise broken

        return Reply(200, body(), {"content-type": "text/event-stream"})


class _Described(ChatCompletions):
    def describe(self):
        described = copy.deepcopy(dict(super().describe()))
        self.spoil(described, described["components"]["schemas"])
        return described


class Boastful(_Described):
    """Describes a field that it does not read, and a route that it does not have."""

    def spoil(self, described, schemas):
        schemas["ChatRequest"]["properties"]["guided_json"] = {}
        described["paths"]["/chat/poems"] = described["paths"]["/chat/completions"]


class Secretive(_Described):
    """Does not describe a field that it reads, and refers to what is not there."""

    def spoil(self, described, schemas):
        del schemas["ChatRequest"]["properties"]["logprobs"], schemas["Tool"]


class Silent(ChatCompletions):
    """Does not describe itself at all."""

    describe = None


class Misplaced(ChatCompletions):
    """Has a path that holds what base URLs end in."""

    routes = (Route("/v1/chat/completions"),)
