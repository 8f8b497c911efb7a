"""Episodes in a worker: what they are given, what they return, and what they can do to nobody but themselves."""

from __future__ import annotations

import math
import re

import pytest
from tests.worker.rollout_end import is_over

from agentrl.errors import PolicyError
from agentrl.worker.protocol import LONGEST, error_from_json

FAULTY = """
    import asyncio, sys, threading, time

    PARTS = {}

    def faults(data):
        match data["fault"]:
            case None: return "sound"
            case "raise": raise LookupError("no such tool")
            case "exit": sys.exit(3)
            case "interrupt": raise KeyboardInterrupt("now")
            case "base": raise BaseException("rare")
            case "generator": raise GeneratorExit
            case "cancelled": raise asyncio.CancelledError
            case "recursion": return faults(data)
            case "text": raise type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})
"""
AGENTS = {
    "async": FAULTY + "    async def agent(data):\n        return faults(data)\n",
    "plain": FAULTY + "    def agent(data):\n        return faults(data)\n",
}
SAID = {
    "raise": r"LookupError: no such tool at .*an_agent\.py:\d+, in faults",
    "exit": "SystemExit: 3 at .*in faults",
    "interrupt": "KeyboardInterrupt: now at",
    "base": "BaseException: rare at",
    "generator": "GeneratorExit: *at",
    "recursion": "RecursionError: maximum recursion depth",
    "text": "Odd: its text cannot be had, ZeroDivisionError",
}


@pytest.mark.parametrize("kind", AGENTS)
def test_whatever_an_agent_raises_costs_its_episode_alone(loaded, kind):
    rollout = loaded(AGENTS[kind])
    for fault, said in SAID.items():
        error = rollout.failure({"fault": fault})
        assert error["kind"] is None
        assert error["api_error"] is False
        assert re.search(said, error["message"])
    assert rollout.run({"fault": None}) == "sound"
    assert rollout.stop() == 0


def test_a_traceback_is_printed_from_the_agents_code_on(loaded):
    rollout = loaded(AGENTS["async"])
    rollout.failure({"fault": "raise"}, episode=7)
    first, second, *rest = rollout.log().splitlines()
    assert (first, second) == ("episode 7 failed:", "Traceback (most recent call last):")
    assert "an_agent.py" in rest[0]
    assert rest[-1] == "LookupError: no such tool"


def test_a_part_of_an_async_agent_that_exits_costs_its_episode(loaded):
    rollout = loaded("""
        import asyncio, sys
        async def part():
            await asyncio.sleep(0)
            sys.exit(3)
        async def agent(data):
            if data["call"]:
                asyncio.get_running_loop().call_soon(sys.exit)
                return "went on"
            await asyncio.gather(part(), asyncio.sleep(0.01))
    """)
    assert "SystemExit: 3" in rollout.failure({"call": False})["message"]
    assert rollout.run({"call": True}) == "went on"
    assert rollout.run({"call": True}) == "went on"


@pytest.mark.parametrize(
    "code",
    [
        "asyncio.get_running_loop().stop(); await asyncio.sleep(0)",
        "json.dumps = json.loads = None",
        "sys.stdout.close(); sys.stderr = None",
        "sys.setrecursionlimit(100)",
        "asyncio.get_running_loop().set_task_factory(None)",
    ],
)
def test_what_an_agent_does_to_the_process_does_not_reach_the_protocol(loaded, code):
    rollout = loaded(f"""
        import asyncio, json, sys
        async def agent(data):
            {code}
            return await asyncio.create_task(asyncio.sleep(0, 1.0))
    """)
    assert [rollout.run(), rollout.run()] == [1.0, 1.0]
    assert rollout.stop() == 0


def test_an_agent_that_cancels_itself_says_so(loaded):
    rollout = loaded("""
        import asyncio
        async def agent(data):
            asyncio.current_task().cancel()
            await asyncio.sleep(1)
    """)
    assert rollout.failure()["message"] == "the agent cancelled its own task"


def test_the_policys_mistake_arrives_as_such_with_its_answer_and_without_a_traceback(loaded):
    rollout = loaded("""
        from agentrl import PolicyError
        class TurnLimit(PolicyError): pass
        async def agent(data):
            raise TurnLimit("no end", answer=data["answer"] or {3})
    """)
    error = error_from_json(rollout.failure({"answer": {"best": [1]}}))
    assert isinstance(error, PolicyError)
    assert (error.message, error.answer) == ("no end", {"best": [1]})
    assert rollout.log() == ""
    unsendable = rollout.failure({"answer": None})
    assert unsendable["kind"] == "AgentError"
    assert "answer, a set" in unsendable["message"]


def test_an_error_of_the_http_client_is_known(loaded):
    rollout = loaded("""
        from openai import AsyncOpenAI
        async def agent(data, base_url):
            await AsyncOpenAI(max_retries=0).models.list()
    """)
    error = rollout.failure()
    assert error["api_error"] is True
    assert "APIConnectionError" in error["message"]


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_what_json_cannot_carry_fails_with_its_place_and_the_fix(loaded, kind):
    rollout = loaded(f"""
        import dataclasses, pydantic
        @dataclasses.dataclass
        class Data:
            x: int
        class Model(pydantic.BaseModel):
            x: int
        class Trap(dict):
            def items(self): raise RuntimeError("looked at")
        deep = []
        for _ in range(100_000): deep = [deep]
        {kind} agent(data):
            return eval(data["code"])
    """)
    for code, place in {
        "{'a': [0, {1}]}": r"returned\['a'\]\[1\], a set",
        "Data(1)": "returned, a Data",
        "[Model(x=1)]": r"returned\[0\], a Model",
        "{1: 0.5}": "the key 1 of returned, a int",
        "deep": "returned, which is nested too deeply",
        "Trap(a=1)": "returned, with RuntimeError: looked at",
        "10**5000": "returned, with ValueError",
        f"'x' * {LONGEST}": f"more than {LONGEST}",
    }.items():
        error = rollout.failure({"code": code})
        assert error["kind"] == "AgentError"
        assert re.search(place, error["message"])
        assert error["fix"].startswith("return ")
    assert rollout.run({"code": "(1, True, None)"}) == [1, True, None]
    assert math.isnan(rollout.run({"code": "float('nan')"}))


def test_numbers_of_other_libraries_are_numbers(loaded):
    rollout = loaded("""
        from decimal import Decimal
        import numpy as np
        async def agent(data):
            return {"a": np.float32(0.5), "b": np.bool_(True), "c": Decimal("0.25")}
    """)
    assert rollout.run() == {"a": 0.5, "b": True, "c": 0.25}


def test_a_plain_function_that_returns_a_coroutine_is_told_the_fix(loaded):
    rollout = loaded("""
        async def real(data):
            return 1.0
        def agent(data):
            return real(data)
    """)
    assert rollout.failure()["fix"] == "make it `async def`"
    assert "never awaited" not in rollout.log()


PLAIN = {
    "function": "def agent(data, *, model): return [data['x'], model]",
    "class": "class agent:\n    def run(self, data, *, model): return [data['x'], model]",
    "instance": "class A:\n    def run(self, data, *, model): return [data['x'], model]\nagent = A()",
    "callable": "class A:\n    def __call__(self, data, *, model): return [data['x'], model]\nagent = A()",
}


@pytest.mark.parametrize("source", PLAIN.values(), ids=PLAIN.keys())
def test_a_synchronous_agent_of_any_form_runs(loaded, source):
    assert loaded(source).run({"x": 2}) == [2, "policy"]


def test_many_async_episodes_run_at_once(loaded):
    rollout = loaded("""
        import asyncio
        waiting = []
        async def agent(data):
            waiting.append(asyncio.get_running_loop().create_future())
            if len(waiting) == 20:
                for future in waiting:
                    future.set_result(None)
            await waiting[data["place"]]
            return data["place"]
    """)
    for place in range(20):
        rollout.begin(place, {"place": place})
    answers = [rollout.hear() for _ in range(20)]
    assert {answer["id"]: answer["returned"] for answer in answers} == {place: place for place in range(20)}


def test_synchronous_episodes_may_run_at_once_too(loaded):
    rollout = loaded("""
        import threading
        both = threading.Barrier(2)
        def agent(data):
            both.wait(30)
            return 1.0
    """)
    rollout.begin(1)
    rollout.begin(2)
    assert {rollout.hear()["id"], rollout.hear()["id"]} == {1, 2}


def test_a_synchronous_episode_has_the_main_thread_as_in_a_script(loaded):
    rollout = loaded("""
        import asyncio, signal, threading
        def agent(data):
            signal.signal(signal.SIGALRM, lambda *_: None)
            return threading.current_thread() is threading.main_thread()
    """)
    assert [rollout.run() for _ in range(3)] == [True] * 3


def test_each_episode_gets_its_own_data(loaded):
    rollout = loaded("""
        kept = []
        async def agent(data):
            kept.append(data)
            data["items"].append(1)
            return [each["items"] for each in kept]
    """)
    assert rollout.run({"items": []}) == [[1]]
    assert rollout.run({"items": []}) == [[1], [1]]


def test_a_cancelled_episode_cleans_up_and_the_others_go_on(loaded):
    rollout = loaded("""
        import asyncio
        async def agent(data):
            if data["quick"]:
                return 1.0
            try:
                print("begun")
                await asyncio.sleep(3600)
            finally:
                print("cleaned up")
    """)
    rollout.begin(1, {"quick": False})
    assert is_over(lambda: "begun" in rollout.log())
    assert rollout.run({"quick": True}, episode=2) == 1.0
    rollout.say("cancel", id=1)
    rollout.say("cancel", id="one that never was")
    answer = rollout.hear()
    assert (answer["type"], answer["id"]) == ("failed", 1)
    assert answer["error"]["message"] == "the episode was cancelled"
    assert "cleaned up" in rollout.log()
    assert rollout.run({"quick": True}, episode=3) == 1.0


def test_an_episode_cancelled_before_its_first_step_is_answered(loaded):
    rollout = loaded("""
        import time
        async def agent(data):
            time.sleep(data["s"])
    """)
    rollout.begin(1, {"s": 0.3})
    rollout.begin(2, {"s": 0})
    rollout.say("cancel", id=2)
    assert {rollout.hear()["id"], rollout.hear()["id"]} == {1, 2}


def test_a_cancellation_that_is_refused_is_answered_when_the_agent_ends(loaded):
    rollout = loaded("""
        import asyncio
        async def agent(data):
            try:
                print("begun")
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
            return "all the same"
    """)
    rollout.begin(1)
    assert is_over(lambda: "begun" in rollout.log())
    rollout.say("cancel", id=1)
    assert rollout.hear() == {"type": "done", "id": 1, "returned": "all the same", "parts": {}}


def test_a_synchronous_agent_does_not_hear_of_a_cancellation(loaded):
    rollout = loaded("""
        import time
        def agent(data):
            time.sleep(0.2)
            return 1.0
    """)
    rollout.begin(1)
    rollout.say("cancel", id=1)
    assert rollout.hear()["type"] == "done"


BLOCKING = """
    import asyncio, time
    async def tool():
        time.sleep(30)
    async def agent(data):
        if data["blocks"] == "in a part":
            await asyncio.gather(tool(), asyncio.sleep(0))
        elif data["blocks"]:
            time.sleep(data["blocks"])
        await asyncio.sleep(0.01)
        return 1.0
"""


@pytest.mark.parametrize("how", [30, "in a part"], ids=["itself", "in a part"])
def test_an_episode_that_holds_others_up_is_named(loaded, how):
    rollout = loaded(BLOCKING)
    rollout.begin(1, {"blocks": False})
    rollout.begin(2, {"blocks": how})
    rollout.begin(3, {"blocks": False})
    told = rollout.hear()
    while told["type"] != "blocked":
        told = rollout.hear()
    assert told["id"] == 2
    assert "has blocked the event loop for" in told["message"]
    assert "an_agent.py:" in told["message"]
    assert "rollout.episodes_per_worker=1" in told["message"]


def test_an_episode_that_blocks_nobody_is_not_reported(loaded):
    rollout = loaded(BLOCKING)
    rollout.begin(1, {"blocks": 3})
    assert rollout.hear()["type"] == "done"


def test_calls_left_in_threads_are_told_of_once_and_keep_no_episode_from_its_turn(loaded):
    rollout = loaded("""
        import asyncio, time

        async def agent(data):
            asyncio.ensure_future(asyncio.to_thread(time.sleep, 3600))
            return await asyncio.to_thread(str, "sound")
    """)
    for episode in range(40):
        assert rollout.run(episode=episode) == "sound"
    assert rollout.hear()["type"] == "held"
    assert rollout.stop() == 0


def test_a_call_that_ends_soon_after_its_episode_is_not_worth_a_word(loaded):
    rollout = loaded("""
        import asyncio, time

        async def agent(data):
            asyncio.ensure_future(asyncio.to_thread(time.sleep, data["seconds"]))
            await asyncio.sleep(0.2)
    """)
    rollout.run({"seconds": 0.5}, episode=1)
    rollout.run({"seconds": 3600}, episode=2)
    assert rollout.hear() == {"type": "held", "id": 2}
