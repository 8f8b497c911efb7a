"""Task sets that break one promise each."""

from __future__ import annotations

import itertools
import random
from datetime import date
from functools import lru_cache

LOADS = itertools.count()


def sound():
    return [{"question": f"What is {number} + 1?", "tags": [number]} for number in range(5)]


def strange():
    return [{"question": "When?", "day": date(2026, 1, 1)}]


def numbered():
    return [{"question": "Which?", "choices": {1: "a"}}]


def unbounded():
    return [{"question": "How much?", "answer": float("nan")}]


class Random:
    """Draws a task whenever it is asked for one."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"question": random.random()}


def drifting():
    """Depends on how often it was loaded."""
    start = next(LOADS)
    return [{"question": start + number} for number in range(5)]


def sharing():
    tags = ["sum"]
    return [{"question": number, "tags": tags} for number in range(5)]


@lru_cache
def kept():
    return sound()


class Lying:
    """Has fewer tasks than it says."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return sound()[:3][index]


def rows():
    return ["What is 1 + 1?"]
