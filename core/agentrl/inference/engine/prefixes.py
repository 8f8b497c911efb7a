"""The prefix cache: KV of token sequences already computed, as a radix tree.

Every node holds the tokens of one edge and their KV, so that sequences that begin alike (a group's
prompt, the turns of a session) store what they share once. The tree is emptied when weights change.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from agentrl.inference.engine.kv import Segment

__all__ = ["Ids", "PrefixCache"]

Ids = npt.NDArray[np.int64]


class _Node:
    __slots__ = ("children", "ids", "kv", "parent")

    def __init__(self, ids: Ids, kv: Segment, parent: _Node | None) -> None:
        self.ids = ids
        self.kv = kv
        self.parent = parent
        self.children: dict[int, _Node] = {}


class PrefixCache:
    """At most ``max_tokens`` tokens; what was used longest ago goes first."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens = 0
        self._root = _Node(np.empty(0, np.int64), (), None)
        # Oldest use first. A node is touched before its parent, so the first entry is always a leaf.
        self._recent: OrderedDict[_Node, None] = OrderedDict()

    def clear(self) -> None:
        """Forget everything."""
        self._root.children.clear()
        self._recent.clear()
        self.tokens = 0

    def match(self, ids: Ids) -> list[Segment]:
        """KV of the longest known prefix of ``ids``, in pieces that follow each other. Views: copy them at once."""
        path, _, shared = self._walk(ids)
        self._touch(path)
        pieces = [node.kv for node in path]
        if path and shared < len(path[-1].ids):
            pieces[-1] = tuple(part[:, :, :shared] for part in pieces[-1])
        return pieces

    def insert(self, ids: Ids, kv: Segment) -> None:
        """Remember the KV of ``ids``; what is new of it is copied."""
        path, known, shared = self._walk(ids)
        if len(ids) > self.max_tokens:
            return
        if path and shared < len(path[-1].ids) and known < len(ids):
            path[-1] = self._split(path[-1], shared)
        if known < len(ids):
            parent = path[-1] if path else self._root
            node = _Node(ids[known:].copy(), tuple(part[:, :, known:].clone() for part in kv), parent)
            parent.children[int(ids[known])] = node
            path.append(node)
            self.tokens += len(node.ids)
        self._touch(path)
        self._evict()

    def _walk(self, ids: Ids) -> tuple[list[_Node], int, int]:
        """Nodes that ``ids`` passes, how many tokens they cover, and how many of the last node's."""
        path: list[_Node] = []
        node, known, shared = self._root, 0, 0
        while known < len(ids) and shared == len(node.ids):
            child = node.children.get(int(ids[known]))
            if child is None:
                break
            shared = _common(child.ids, ids[known:])
            known += shared
            path.append(child)
            node = child
        return path, known, shared

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut an edge in two and return the upper half. Both are copies: either may be evicted alone."""
        assert node.parent is not None
        upper = _Node(node.ids[:at].copy(), tuple(part[:, :, :at].clone() for part in node.kv), node.parent)
        node.parent.children[int(node.ids[0])] = upper
        upper.children[int(node.ids[at])] = node
        node.ids, node.kv, node.parent = node.ids[at:].copy(), tuple(part[:, :, at:].clone() for part in node.kv), upper
        return upper

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._recent[node] = None
            self._recent.move_to_end(node)

    def _evict(self) -> None:
        while self.tokens > self.max_tokens:
            leaf, _ = self._recent.popitem(last=False)
            assert leaf.parent is not None
            del leaf.parent.children[int(leaf.ids[0])]
            self.tokens -= len(leaf.ids)


def _common(left: Ids, right: Ids) -> int:
    """How many leading ids are equal."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length
