"""Makes the folder of a finished run with as many episodes as wanted, through the real writer of the store.

    python -m tests.benchmarks.made_run FOLDER [--episodes 100000] [--seed 0]

Every optimiser step has 8 groups of 8 episodes of an agent that searches, calculates and answers in 1 to 6 calls,
about 300 sampled tokens each; some fail, are rejected or run into a limit. Every 20th step is followed by an
evaluation. What the step made of every token is recorded, and ``metrics.jsonl`` and ``summary.json`` tell of the run.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentrl.config.models import Config
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure, Fate, Phase
from agentrl.runs.contract import Membership, Summary, TrainedEpisode, TrainedTokens
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import ROOT, Sampled, TokenTree

__all__ = ["Maker", "make_run"]

GROUPS, SIZE = 8, 8
"""Groups of a step, and episodes of a group."""
EVALUATED, EVALUATE_EVERY = 32, 20
TASKS = 2000
TOOLS = ("search", "open_page", "calculate", "run_python", "read_file", "submit_answer")
_SYLLABLES = ("ba", "co", "di", "fu", "ge", "ha", "li", "mo", "nu", "pe", "ri", "so", "ta", "ve", "wi", "zu")
_SIDES = ("agent", "reward", "backend", "worker")
_MISTAKES = ("no such tool 'serch'", "turn limit: 6 turns", "token limit: 512 tokens", "no answer")
_POOL = 100_000
"""Random numbers that are drawn once; an episode takes a slice of them."""
_START = 1_790_000_000.0


@dataclass(frozen=True)
class Drawn:
    """What episodes are cut out of."""

    words: Sequence[str]
    ids: Sequence[int]
    logprobs: Sequence[float]
    entropies: Sequence[float]


class Maker:
    """Makes episodes; equal seeds make equal ones."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        draw = self._random
        vocabulary = [
            "".join(draw.choices(_SYLLABLES, k=draw.randint(1, 4))) + str(number % 7 or "") for number in range(5000)
        ]
        # As in a language, the tenth word is a tenth as common as the first.
        weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
        self._drawn = Drawn(
            draw.choices(vocabulary, weights, k=_POOL),
            draw.choices(range(50_000), k=_POOL),
            _single(-draw.expovariate(2.0) for _ in range(_POOL)),
            _single(draw.expovariate(1.5) for _ in range(_POOL)),
        )

    def group(self, phase: Phase, ordinal: int, version: int, progress: float, size: int = SIZE) -> list[Episode]:
        """The episodes of a group; ``progress`` from 0 to 1 says how far the policy has learned."""
        task = ordinal * 7919 % TASKS
        ability = progress * 0.6 + (task % 10) * 0.04
        return [self._episode(EpisodeKey(phase, ordinal, task, sample), version, ability) for sample in range(size)]

    def _episode(self, key: EpisodeKey, version: int, ability: float) -> Episode:
        draw = self._random
        luck = draw.random()
        tree, calls = self._conversation(key, version, draw.choice((1, 2, 3, 3, 4, 6)))
        failed, rejected = luck < 0.02, 0.02 <= luck < 0.03
        reward = None if failed or rejected else float(draw.random() < ability) + round(draw.random() * 0.1, 3)
        side = draw.choice(_SIDES)
        reason = f"TimeoutError: no answer from https://{self._text(1)}.example after {draw.randint(5, 60)} s"
        return Episode(
            key=key,
            data={"question": f"What is {key.task} times {key.task % 97}?", "answer": str(key.task * (key.task % 97))},
            outcome="failed" if failed else "rejected" if rejected else "rewarded",
            reward=reward,
            reward_parts={} if reward is None else {"correct": float(int(reward)), "format": reward % 1},
            calls=calls,
            tree=tree,
            answer=None if reward is None else str(draw.randint(0, 10**6)),
            failure=Failure(side, reason, f"TimeoutError at {side}.py:{draw.randint(1, 9)}") if failed else None,  # type: ignore[arg-type]
            mistake=draw.choice(_MISTAKES) if 0.03 <= luck < 0.07 else None,
            seconds=round(draw.lognormvariate(1.0, 0.5), 3),
            attempts=2 if draw.random() < 0.02 else 1,
            version=version,
            started=_START + version * 20 + draw.random() * 10,
        )

    def _conversation(self, key: EpisodeKey, version: int, turns: int) -> tuple[TokenTree, tuple[Call, ...]]:
        draw, drawn = self._random, self._drawn
        tree, at, calls, now = TokenTree(), ROOT, list[Call](), draw.random() * 0.01
        system = {"role": "system", "content": "You answer questions. Use the tools, then submit the answer."}
        history: list[dict[str, Any]] = [system, {"role": "user", "content": f"Task {key.task}: {self._text(30)}"}]
        tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in TOOLS]
        prompt = 0
        for turn in range(turns):
            given = 120 if turn == 0 else draw.randint(20, 80)
            sampled = draw.randint(200, 400) // turns
            # The prompt of a task is the same in every episode of its group.
            first = key.task * 31 % (_POOL - 1000) if turn == 0 else draw.randrange(_POOL - 1000)
            at = tree.add_given(drawn.ids[first : first + given], at)
            begin = draw.randrange(_POOL - 1000)
            name = f"call-{key}-{turn}"
            recorded = Sampled(name, tuple(drawn.logprobs[begin : begin + sampled]), (version,) * sampled, 1.0)
            at = tree.add_sampled(drawn.ids[begin : begin + sampled], recorded, at)
            prompt += given
            message = self._message(turn, turns)
            seconds = sampled * 0.01
            calls.append(
                Call(
                    id=name,
                    parent=calls[-1].id if calls else None,
                    request={"model": "policy", "messages": list(history), "tools": tools, "max_tokens": 512},
                    message=message,
                    finish_reason="tool_calls" if "tool_calls" in message else "stop",
                    prompt_tokens=prompt,
                    completion_tokens=sampled,
                    seconds=seconds,
                    started=round(now, 4),
                    waited=0.02,
                )
            )
            now += seconds + draw.random()
            prompt += sampled
            history += [message, {"role": "tool", "tool_call_id": "0", "content": self._text(40)}]
        return tree, tuple(calls)

    def _message(self, turn: int, turns: int) -> dict[str, Any]:
        said = {"role": "assistant", "content": self._text(25), "reasoning_content": self._text(40)}
        if turn == turns - 1:
            return said
        function = {"name": self._random.choice(TOOLS), "arguments": f'{{"query": "{self._text(4)}"}}'}
        return said | {"tool_calls": [{"id": "0", "type": "function", "function": function}]}

    def _text(self, count: int) -> str:
        begin = self._random.randrange(_POOL - 1000)
        return " ".join(self._drawn.words[begin : begin + count])

    def trained(self, step: int, group: Sequence[Episode]) -> Iterator[TrainedEpisode]:
        """What ``step`` made of a group: advantages are rewards less their mean, in standard deviations."""
        rewards = [episode.reward for episode in group if episode.reward is not None]
        mean = sum(rewards) / len(rewards) if rewards else 0.0
        spread = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards)) if rewards else 0.0
        for episode in group:
            count = sum(len(span.ids) for span in episode.tree.spans if span.sampled is not None)
            fate: Fate = episode.fate or ("trained" if spread else "without_difference")
            nothing = (math.nan,) * count
            if episode.reward is None:
                tokens = TrainedTokens(step, ("left_out",) * count, nothing, nothing, nothing, nothing, nothing)
            else:
                begin = self._random.randrange(_POOL - 1000)
                drawn = [logprob for span in episode.tree.spans if span.sampled for logprob in span.sampled.logprobs]
                tokens = TrainedTokens(
                    step,
                    ("trained",) * count,
                    ((episode.reward - mean) / (spread or 1.0),) * count,
                    (1 / (300.0 * GROUPS * SIZE),) * count,
                    tuple(_single(logprob * 0.9999 for logprob in drawn)),
                    tuple(self._drawn.entropies[begin : begin + count]),
                    (1.0,) * count,
                )
            yield TrainedEpisode(episode.key, fate, tokens)


def _single(values: Iterator[float]) -> list[float]:
    return array("f", values).tolist()


def make_run(folder: Path, episodes: int, seed: int = 0) -> RunFolder:
    """Make a run of at least ``episodes`` episodes at ``folder``, which is not there yet."""
    steps = max(1, -(-episodes // (GROUPS * SIZE + EVALUATED / EVALUATE_EVERY)).__ceil__())
    run = RunFolder.create(
        Config.model_validate({"run": {"dir": str(folder.parent), "name": folder.name}, "training": {"steps": steps}})
    )
    maker, tokens, evaluation = Maker(seed), 0, {}
    clock = iter(_START + 10.0 * tick for tick in range(10**9))
    with EpisodeStore(run.episodes) as store, MetricsLog(run.metrics, clock=lambda: next(clock)) as log:
        for step in range(1, steps + 1):
            groups = [
                maker.group("train", (step - 1) * GROUPS + number, step - 1, step / steps) for number in range(GROUPS)
            ]
            members = [episode for group in groups for episode in group]
            store.submit(members)
            store.begin_step(Membership(step, tuple(group[0].key.group for group in groups)))
            trained = [each for group in groups for each in maker.trained(step, group)]
            done = store.record_training(step, trained)
            log.append(step, _metrics(step, steps, members, trained))
            tokens += sum(call.completion_tokens for episode in members for call in episode.calls)
            if step % EVALUATE_EVERY == 0 or step == steps:
                ordinals = range(step * EVALUATED, (step + 1) * EVALUATED)
                sampled = [maker.group("eval", ordinal, step, step / steps, 1)[0] for ordinal in ordinals]
                store.submit(
                    [replace(each, key=replace(each.key, task=each.key.group % EVALUATED)) for each in sampled]
                )
                rewards = [each.reward for each in sampled if each.reward is not None]
                evaluation = {"evaluation/reward": sum(rewards) / len(rewards), "evaluation/episodes": EVALUATED}
                log.append(step, evaluation)
            done.result()
        log.sync()
    (run.path / "checkpoints").mkdir(exist_ok=True)
    reward = evaluation["evaluation/reward"]
    run.write_summary(
        Summary("completed", steps, steps * GROUPS * SIZE, tokens, steps * 20.0, reward_before=0.2, reward_after=reward)
    )
    return run


def _metrics(step: int, steps: int, members: Sequence[Episode], trained: Sequence[TrainedEpisode]) -> dict[str, float]:
    rewards = [episode.reward for episode in members if episode.reward is not None]
    mean, progress, count = sum(rewards) / len(rewards), step / steps, len(members)
    calls = [call for episode in members for call in episode.calls]
    fates = [each.fate for each in trained]
    names: tuple[Fate, ...] = ("trained", "without_difference", "rejected", "failed", "stale", "over_long")
    return {
        "rollout/episodes": count,
        "rollout/failed": fates.count("failed"),
        "rollout/rejected": fates.count("rejected"),
        "rollout/calls": len(calls),
        "tokens/prompt": sum(call.prompt_tokens for call in calls),
        "tokens/completion": sum(call.completion_tokens for call in calls),
        "episode/seconds": sum(episode.seconds for episode in members) / count,
        "episode/calls": len(calls) / count,
        "episode/tokens": sum(call.completion_tokens for call in calls) / count,
        "reward/mean": mean,
        "reward/std": math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards)),
        "ledger/received": count,
        **{f"ledger/{name}": fates.count(name) for name in names},
        "staleness/mean": 0.0,
        "staleness/max": 0.0,
        "policy/loss": 0.01 * math.sin(step),
        "policy/entropy": 1.2 - 0.8 * progress,
        "policy/mismatch_kl": 1e-7 * (2 + math.sin(step)),
        "policy/grad_norm": 1.0 + 0.3 * math.cos(step),
        "policy/learning_rate": 1e-4,
        "seconds/rollout": 12.0 + math.sin(step),
        "seconds/learner": 6.0,
        "seconds/weights": 0.5,
        "seconds/step": 19.0 + math.sin(step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the run folder to make, such as runs/large")
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.perf_counter()
    run = make_run(args.folder, args.episodes, args.seed)
    size = run.episodes.stat().st_size / 1e6
    print(f"{run.path}: {size:,.0f} MB of episodes in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
