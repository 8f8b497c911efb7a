"""Processes that an agent starts: none of them speaks for the worker, none outlives it, none is left as a zombie."""

from __future__ import annotations

import os
import signal

import pytest
from tests.worker.rollout_end import is_gone, is_over

FORKING = {
    "async": ("async def", "await asyncio.sleep(0)", "await asyncio.sleep(0.3)"),
    "plain": ("def", "pass", "time.sleep(0.3)"),
}


@pytest.fixture(params=FORKING)
def forking(request, loaded):
    """A worker whose agent forks and has its child do what the data says; the agent returns the child's status."""
    define, pause, wait = FORKING[request.param]
    return loaded(f"""
        import asyncio, os, sys, time
        {define} agent(data):
            child = os.fork()
            if child:
                {wait}
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            exec(data["do"])
            {pause}
            return "of the child"
    """)


@pytest.mark.parametrize(
    ("do", "status"),
    [("pass", 0), ("sys.exit(4)", 4), ("sys.exit('no')", 1), ("raise LookupError('in the child')", 1)],
)
def test_a_fork_that_goes_on_ends_quietly_and_the_worker_answers_once(forking, do, status):
    assert forking.run({"do": do}) == status
    assert forking.run({"do": "os._exit(5)"}, episode=2) == 5
    assert forking.stop() == 0


def test_other_episodes_do_not_go_on_in_a_fork(loaded):
    rollout = loaded("""
        import asyncio, os
        steps = []
        async def agent(data):
            if not data["forks"]:
                while len(steps) < 200:
                    steps.append(os.getpid())
                    print("step of", os.getpid())
                    await asyncio.sleep(0)
                return len(set(steps))
            child = os.fork()
            await asyncio.sleep(0)
            if child:
                return os.waitpid(child, 0)[1]
    """)
    rollout.begin(1, {"forks": False})
    rollout.begin(2, {"forks": True})
    answers = {answer["id"]: answer["returned"] for answer in (rollout.hear(), rollout.hear())}
    assert answers == {1: 1, 2: 0}
    assert len(set(rollout.log().splitlines())) == 1


def test_a_fork_in_a_thread_of_an_async_agent_ends_too(loaded):
    rollout = loaded("""
        import asyncio, os
        async def agent(data):
            child = await asyncio.to_thread(os.fork)
            return os.waitpid(child, 0)[1]
    """)
    assert rollout.run() == 0


def test_a_module_that_forks_when_it_is_imported_is_loaded_once(rollout, write):
    answer = rollout.load(
        write("""
            import os
            child = os.fork()
            async def agent(data):
                return os.waitpid(child, 0)[1]
        """)
    )
    assert answer["type"] == "loaded"
    assert rollout.run() == 0


@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works(loaded, method, kind):
    rollout = loaded(f"""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        def square(x):
            return x * x
        {kind} agent(data):
            context = multiprocessing.get_context("{method}")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                squares = list(pool.map(square, [1, 2]))
            process = context.Process(target=square, args=(3,))
            process.start()
            process.join()
            return [*squares, process.exitcode]
    """)
    assert rollout.run() == [1, 4, 0]
    assert rollout.stop() == 0
    assert rollout.log() == ""


def test_subprocesses_of_asyncio_work(loaded):
    rollout = loaded("""
        import asyncio
        async def agent(data):
            process = await asyncio.create_subprocess_exec("sh", "-c", "cat; exit 3", stdin=-1, stdout=-1)
            said, _ = await process.communicate(b"through a pipe")
            return [said.decode(), process.returncode]
    """)
    assert [rollout.run() for _ in range(3)] == [["through a pipe", 3]] * 3


def test_a_child_process_has_no_part_in_the_protocol(loaded):
    rollout = loaded("""
        import os, subprocess, time
        def sockets(pid):
            folder = f"/proc/{pid}/fd"
            links = [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]
            return sum(link.startswith("socket") for link in links)
        def agent(data):
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
            ready, tell = os.pipe()
            forked = os.fork()
            if not forked:
                os.write(tell, b"here")
                time.sleep(60)
            os.read(ready, 4)
            counts = [sockets(os.getppid()), sockets(child.pid), sockets(forked)]
            for pid in (child.pid, forked):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            return counts
    """)
    assert rollout.run() == [1, 0, 0]


def test_orphans_become_no_zombies_and_no_children_of_the_agents_process(loaded):
    rollout = loaded("""
        import os, subprocess
        async def agent(data):
            left = subprocess.check_output(["sh", "-c", "sleep 0.01 >&2 & echo $!"], text=True)
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return int(left)
    """)
    orphans = [rollout.run() for _ in range(5)]
    assert is_over(lambda: not any(os.path.exists(f"/proc/{orphan}") for orphan in orphans))


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.abort()", -signal.SIGABRT),
    ],
)
def test_what_a_dead_worker_leaves_ends_with_it_and_its_end_is_told(loaded, end, code):
    rollout = loaded(f"""
        import os, resource, signal, subprocess
        async def agent(data):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            plain = subprocess.Popen(["sleep", "3600"])
            apart = subprocess.Popen(["sh", "-c", "sleep 3600 & sleep 3600"], start_new_session=True)
            print(plain.pid, apart.pid, flush=True)
            {end}
    """)
    rollout.begin(1)
    assert rollout.exit_code() == code
    assert all(is_gone(int(pid)) for pid in rollout.log().split()[:2])


def test_a_killed_supervisor_takes_the_agents_process_along(loaded):
    rollout = loaded("import os\nasync def agent(data):\n    return os.getpid()\n")
    pid = rollout.run()
    rollout.process.kill()
    assert is_over(lambda: is_gone(pid))


def test_a_worker_that_is_told_to_terminate_does(loaded):
    rollout = loaded("import os\nasync def agent(data):\n    return os.getpid()\n")
    pid = rollout.run()
    rollout.process.terminate()
    assert rollout.exit_code() == -signal.SIGTERM
    assert is_gone(pid)
