"""``python -m tests.gpu.engine FOLDER DEVICE PRECISION ROWS TOKENS``: the speed of the engine, and its mismatch.

Prints one JSON document: tokens a second of ``ROWS`` completions at once, and the mismatch KL between engine and
learner, both computing in ``PRECISION``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Literal, cast

import numpy as np
from tests.algorithms.algorithms import grpo

from agentrl.config.training import TrainingSection
from agentrl.inference.contract import BackendContext, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.learner.contract import Targets
from agentrl.learner.learner import Learner

PROMPT = 64

Sampled = tuple[list[int], list[int], list[float]]
"""A prompt's ids, those of its completion, and their log-probabilities."""


async def sampled(folder: Path, device: str, precision: str, rows: int, tokens: int) -> tuple[list[Sampled], float]:
    """Completions of random prompts, and the seconds that they took."""
    chosen = cast(Literal["float32", "bfloat16"], precision)
    options: dict[str, object] = {"device": device, "context_length": PROMPT + tokens + 2}
    backend = TorchBackend(
        BackendContext(folder, max_concurrency=rows, precision=chosen, options=options),
    )
    await backend.start()
    random = np.random.default_rng(0)

    async def one(seed: int) -> Sampled:
        prompt = random.integers(0, 500, PROMPT).tolist()
        request = GenerationRequest(tuple(prompt), Sampling(max_tokens=tokens, seed=seed))
        chunks = [chunk async for chunk in backend.generate(request)]
        ids = [token for chunk in chunks for token in chunk.ids]
        return prompt, ids, [logprob for chunk in chunks for logprob in chunk.logprobs]

    await one(0)
    began = time.perf_counter()
    made = await asyncio.gather(*(one(seed) for seed in range(rows)))
    seconds = time.perf_counter() - began
    await backend.stop()
    return made, seconds


def main(folder: str, device: str, precision: str, rows: str, tokens: str) -> dict[str, float]:
    made, seconds = asyncio.run(sampled(Path(folder), device, precision, int(rows), int(tokens)))
    training = TrainingSection.model_validate({"device": device, "precision": precision})
    learner = Learner(Path(folder), training, grpo().loss, seed=0)
    counts = [len(ids) for _, ids, _ in made]
    targets = Targets(
        path=np.repeat(np.arange(len(made)), counts),
        depth=np.concatenate([PROMPT - 1 + np.arange(count) for count in counts]),
        token=np.concatenate([np.array(ids) for _, ids, _ in made]),
        temperature=np.ones(sum(counts)),
    )
    scored = learner.score(targets, [np.array([*prompt, *ids]) for prompt, ids, _ in made]).logprob
    ratio = scored - np.concatenate([np.array(logprobs) for *_, logprobs in made])
    return {"tokens_per_second": sum(counts) / seconds, "mismatch_kl": float(np.mean(np.expm1(ratio) - ratio))}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
