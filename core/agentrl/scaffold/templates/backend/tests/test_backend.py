"""What this backend samples is what the model says."""

import asyncio
from pathlib import Path

import torch
from agentrl.inference.contract import BackendContext, GenerationRequest, Sampling
from transformers import AutoModelForCausalLM

from agentrl_plugin_name.backend import PluginNameBackend

pytest_plugins = ["agentrl.testing"]

PROMPT = [40, 41, 42, 43]


async def completion(folder: Path, sampling: Sampling) -> list[int]:
    settings = PluginNameBackend.Settings()
    backend = PluginNameBackend(BackendContext(folder), settings)
    await backend.start()
    try:
        request = GenerationRequest(PROMPT, sampling)
        return [
            token async for chunk in backend.generate(request) for token in chunk.ids
        ]
    finally:
        await backend.stop()


def test_greedy_tokens_are_those_of_the_whole_model(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = list(PROMPT)
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    found = asyncio.run(completion(tiny_model, Sampling(temperature=0, max_tokens=12)))
    assert [*PROMPT, *found] == ids
