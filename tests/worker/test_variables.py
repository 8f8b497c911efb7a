"""The endpoint in the environment: the process's for what is older than an episode, the episode's own inside it."""

from __future__ import annotations

import pytest

from agentrl.worker.variables import endpoint_variables

NAMES = ["OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"]
PROCESS_ENDPOINT = ["http://127.0.0.1:9/process/v1", "process", "http://127.0.0.1:9/process", "process", "process"]


def of_episode(number: int) -> list[str]:
    url, key = f"http://127.0.0.1:9/episode-{number}", f"key-{number}"
    return [f"{url}/v1", key, url, key, key]


def test_anthropics_url_lacks_the_version_that_its_sdk_appends():
    assert endpoint_variables("http://x/v1/", "k")["ANTHROPIC_BASE_URL"] == "http://x"
    assert list(endpoint_variables("http://x/v1", "k")) == NAMES


def test_sdk_clients_without_arguments_reach_their_episode_and_older_ones_the_process_endpoint(loaded):
    rollout = loaded("""
        import asyncio
        from openai import AsyncOpenAI, OpenAI
        old = OpenAI()
        meeting = asyncio.Barrier(2)
        def of(client):
            return [str(client.base_url), client.api_key]
        async def agent(data):
            first = of(AsyncOpenAI())
            await meeting.wait()
            second = of(OpenAI())
            return [first, second, of(old)]
    """)
    rollout.begin(1)
    rollout.begin(2)
    answers = [rollout.hear() for _ in range(2)]
    for answer in answers:
        own = [f"http://127.0.0.1:9/episode-{answer['id']}/v1/", f"key-{answer['id']}"]
        assert answer["returned"] == [own, own, ["http://127.0.0.1:9/process/v1/", "process"]]


READ = f"""
    import asyncio, os, subprocess, sys, threading
    NAMES = {NAMES}
    def read(environ=os.environ):
        return [environ[name] for name in NAMES]
    at_import = read()
    def in_a_thread():
        seen = []
        thread = threading.Thread(target=lambda: seen.extend(read()))
        thread.start()
        thread.join()
        return seen
    def in_a_process(**options):
        code = "import os, sys; print(*(os.environ[name] for name in sys.argv[1:]))"
        return subprocess.check_output([sys.executable, "-c", code, *NAMES], text=True, **options).split()
"""


def test_code_of_an_async_agent_sees_the_episode_wherever_the_context_goes(loaded):
    rollout = loaded(
        READ
        + """
    async def part():
        return read()
    async def agent(data):
        loop = asyncio.get_running_loop()
        called = loop.create_future()
        loop.call_soon(lambda: called.set_result(read()))
        return {
            "run": read(),
            "task": await asyncio.create_task(part()),
            "to_thread": await asyncio.to_thread(read),
            "executor": await loop.run_in_executor(None, read),
            "callback": await called,
            "copied": read({**os.environ}),
            "process with a copy": in_a_process(env={**os.environ}),
            "at import": at_import,
            "thread": in_a_thread(),
            "process": in_a_process(),
        }
    """
    )
    for number in (1, 2):
        seen = rollout.run(episode=number)
        outside = {name: seen.pop(name) for name in ("at import", "thread", "process")}
        assert seen == dict.fromkeys(seen, of_episode(number))
        assert outside == dict.fromkeys(outside, PROCESS_ENDPOINT)


def test_code_of_a_synchronous_agent_sees_the_episode(loaded):
    rollout = loaded(
        READ
        + """
    both = threading.Barrier(2)
    async def part():
        return await asyncio.to_thread(read)
    def agent(data):
        before = read()
        both.wait(30)
        return [before, read(), asyncio.run(part())]
    """
    )
    rollout.begin(1)
    rollout.begin(2)
    for answer in (rollout.hear(), rollout.hear()):
        assert answer["returned"] == [of_episode(answer["id"])] * 3


def test_the_mapping_stays_one_in_every_respect(loaded):
    rollout = loaded("""
        import os
        held = os.environ
        NAME = "OPENAI_API_KEY"
        async def agent(data):
            assert os.environ is held
            facts = [
                os.getenv(NAME), held.get(NAME), NAME in held, held.copy()[NAME], dict(held)[NAME],
                dict(held.items())[NAME], (held | {})[NAME], list(held).count(NAME), len(held) == len(list(held)),
                repr(held).count(NAME + "'"), f"'{NAME}': '{held[NAME]}'" in repr(held),
            ]
            return facts
    """)
    assert rollout.run() == ["key-1", "key-1", True, "key-1", "key-1", "key-1", "key-1", 1, True, 1, True]


def test_what_an_agent_assigns_it_sees_itself_and_nobody_else(loaded):
    rollout = loaded("""
        import os
        from unittest import mock
        NAME = "OPENAI_API_KEY"
        async def agent(data):
            facts = [os.environ[NAME]]
            with mock.patch.dict(os.environ, {NAME: "mine"}, clear=True):
                facts += [dict(os.environ)]
            facts += [os.environ[NAME], os.environ.pop(NAME), NAME in os.environ, NAME in list(os.environ)]
            try:
                del os.environ[NAME]
            except KeyError as error:
                facts += [error.args[0]]
            os.environ.setdefault(NAME, "mine")
            os.environ["OTHER"] = "kept"
            facts += [os.environ[NAME], os.environ["OTHER"]]
            try:
                os.environ[NAME] = 3
            except TypeError:
                facts += ["text only"]
            return facts
    """)
    for number in (1, 2):
        key = f"key-{number}"
        expected = [key, {"OPENAI_API_KEY": "mine"}, key, key, False, False, "OPENAI_API_KEY", "mine", "kept"]
        assert rollout.run(episode=number) == [*expected, "text only"]


@pytest.mark.parametrize("code", ["os.environ['HOME']", "os.environ.get('NO_SUCH_NAME')", "'PATH' in os.environ"])
def test_other_variables_are_as_ever(loaded, code):
    import os

    assert loaded(f"import os\nasync def agent(data):\n    return {code}\n").run() == eval(code, {"os": os})
