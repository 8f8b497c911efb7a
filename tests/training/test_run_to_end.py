"""Coroutines run from code that is not asynchronous, and from code that is."""

import asyncio

import pytest

from agentrl.training.interrupts import run_to_end


async def answer():
    await asyncio.sleep(0)
    return 42


async def fails():
    raise LookupError("nothing there")


def test_without_a_loop_the_coroutine_runs_here():
    assert run_to_end(answer) == 42


def test_in_a_notebooks_loop_it_runs_all_the_same():
    async def cell():
        return run_to_end(answer)

    assert asyncio.run(cell()) == 42


def test_what_it_raises_is_raised():
    with pytest.raises(LookupError, match="nothing there"):
        run_to_end(fails)
