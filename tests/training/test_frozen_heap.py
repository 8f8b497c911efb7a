from __future__ import annotations

import contextlib
import gc
import weakref

from agentrl.training.serving import frozen_heap


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_collections_pass_over_what_was_there_and_still_find_what_came_later() -> None:
    old = Node()
    with frozen_heap():
        young = Node()
        objects = {id(tracked) for tracked in gc.get_objects()}
        assert id(old) not in objects
        assert id(young) in objects
        dead = weakref.ref(young)
        del young
        gc.collect()
        assert dead() is None


def test_what_was_passed_over_is_collected_again_afterwards_also_after_an_error() -> None:
    node = Node()
    dead = weakref.ref(node)
    with contextlib.suppress(RuntimeError), frozen_heap():
        del node
        gc.collect()
        assert dead() is not None
        raise RuntimeError
    gc.collect()
    assert dead() is None
