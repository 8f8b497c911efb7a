"""Examples: what supervised fine-tuning imitates, as paths of token ids and the tokens on them that are trained.

A written conversation becomes a token tree as a rollout would have recorded it: each turn of the assistant is a span
after the prompt that the policy would have been given. An episode of a run has such a tree, whose ids are taken as they
are. Either way an example holds the fewest paths on which its trained turns lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentrl.algorithms.batch import cover
from agentrl.errors import ConfigError, GatewayError
from agentrl.learner.contract import Targets, TrainBatch
from agentrl.rollout.contract import Episode, delivered_calls
from agentrl.tokens.contract import ROOT, Sampled, TokenTree
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.turns import spoken_turns
from agentrl.training.dialogues import Dialogue, Trained

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats, Ints

__all__ = ["Example", "calls_of", "digest_of", "example_of_dialogue", "example_of_episode", "targets_of", "train_batch"]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that is imitated, with ``n`` trained tokens; the arrays have shape (n,)."""

    name: str
    """What messages call it."""
    paths: tuple[Ints, ...]
    """Token ids from the root, one array a path."""
    path: Ints
    """On which of the paths the position lies that predicts each token."""
    depth: Ints
    """How many ids come before that position."""
    token: Ints
    turn: Ints
    """Which turn each token belongs to, numbered from 0."""

    @property
    def longest(self) -> int:
        """The length of the longest path."""
        return max(map(len, self.paths), default=0)


def example_of_dialogue(dialogue: Dialogue, renderer: Renderer) -> Example:
    """The example that ``renderer`` makes of a conversation.

    Raises ``ConfigError``, with the place of the conversation, where the chat template does not write all of it.
    """
    try:
        turns = spoken_turns(renderer, dialogue.messages, dialogue.tools)
    except GatewayError as error:
        raise ConfigError(f"{dialogue.place}: {error.message}", fix=error.fix) from error
    tree, trained = TokenTree(), set[int]()
    for turn in turns:
        size = len(turn.completion_ids)
        sampled = Sampled(str(turn.message), (0.0,) * size, (0,) * size, 1.0)
        end = tree.add_sampled(turn.completion_ids, sampled, tree.add_given(turn.prompt_ids, ROOT))
        if turn.message in dialogue.trained:
            trained.add(end.span)
    return _example(dialogue.place, tree, trained)


def example_of_episode(episode: Episode, trained: Trained) -> Example | None:
    """The example that ``episode`` is: what the policy sampled in it, and its agent received.

    ``None`` where nothing was sampled.
    """
    calls = [call.id for call in delivered_calls(episode)]
    chosen = set(calls if trained == "all" else calls[-1:])
    spans = enumerate(episode.tree.spans)
    trained_spans = {n for n, span in spans if span.sampled is not None and span.sampled.call in chosen}
    return _example(f"episode {episode.key}", episode.tree, trained_spans) if trained_spans else None


def _example(name: str, tree: TokenTree, trained: Collection[int]) -> Example:
    paths = cover(tree, trained)
    terms = [
        (number, start - 1 + at, token, turn)
        for turn, (number, span, start) in enumerate(
            (number, span, start) for number, path in enumerate(paths) for span, start in path.spans
        )
        for at, token in enumerate(tree.spans[span].ids)
    ]
    path, depth, token, turn = np.array(terms, dtype=np.int64).T
    return Example(name, tuple(path.ids for path in paths), path, depth, token, turn)


def targets_of(examples: Sequence[Example]) -> tuple[Targets, list[Ints]]:
    """The tokens of ``examples`` to score, at temperature 1, and the paths that they lie on."""
    first = np.cumsum([0, *(len(example.paths) for example in examples)])
    paths = [path for example in examples for path in example.paths]
    on_path = _joined(example.path + first[n] for n, example in enumerate(examples))
    return (
        Targets(
            path=on_path,
            depth=_joined(example.depth for example in examples),
            token=_joined(example.token for example in examples),
            temperature=np.ones(len(on_path)),
        ),
        paths,
    )


def train_batch(examples: Sequence[Example], weight: Floats, version: int) -> TrainBatch:
    """The batch of ``examples``, whose tokens have ``weight`` in the loss, for a learner of ``version``.

    Nobody has sampled what it trains: the log-probabilities of the behaviour are 0, and are not to be read.
    """
    targets, paths = targets_of(examples)
    count = len(targets.token)
    return TrainBatch(
        paths=tuple(paths),
        targets=targets,
        logprob=np.zeros(count),
        version=np.full(count, version, dtype=np.int64),
        advantage=np.ones(count),
        weight=weight,
        call=calls_of(examples),
        labels=tuple(example.name for example in examples for _ in example.paths),
    )


def calls_of(examples: Sequence[Example]) -> Ints:
    """Which turn each trained token of ``examples`` belongs to, numbered from 0 over all of them."""
    first = np.cumsum([0, *(int(example.turn.max()) + 1 for example in examples)])
    return _joined(example.turn + first[n] for n, example in enumerate(examples))


def digest_of(examples: Iterable[Example]) -> str:
    """A digest of the ids, and of which of them are trained."""
    digest = hashlib.sha256()
    for example in examples:
        for array in (*example.paths, example.path, example.depth, example.token):
            digest.update(len(array).to_bytes(8, "little") + array.astype("<i8").tobytes())
    return digest.hexdigest()


def _joined(arrays: Iterable[Ints]) -> Ints:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])
