"""Rewards that break one promise each."""

from __future__ import annotations

import asyncio
import random
import time


def sound(answer, data):
    return float("42" in str(answer))


async def sound_too(answer, data, *, episode):
    await asyncio.sleep(0)
    return sound(answer, data)


def strict(answer, data):
    """Believes that answers are texts."""
    return float(answer.strip() == data["answer"])


def moody(answer, data):
    return random.random()


def marking(answer, data):
    data["scored"] = True
    return 1.0


def finishing(answer, data):
    if isinstance(answer, dict):
        answer.clear()
    return 1.0


def upside_down(answer, data):
    return 1.0 - sound(answer, data)


def wordy(answer, data):
    return "good"


def infinite(answer, data):
    return float("inf")


def hanging(answer, data):
    while answer == "":
        time.sleep(0.05)
    return 1.0


async def waiting(answer, data):
    if answer == "":
        await asyncio.Event().wait()
    return 1.0
