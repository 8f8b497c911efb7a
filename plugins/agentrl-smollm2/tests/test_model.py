"""The real model: it says what it should, and after the first time nothing is fetched."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl import Trainer, load_config
from agentrl_smollm2.model import smollm2_135m


@pytest.fixture(scope="module")
def folder():
    return smollm2_135m()


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_it_answers_as_the_pretrained_model_does(folder, model):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokens[0, prompt["input_ids"].shape[1] :]
    assert "The capital of France is Paris." in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


def test_its_folder_says_what_it_is(folder, model):
    assert (model.dtype, model.num_parameters()) == (torch.float32, 134_515_008)
    assert not hasattr(model.config, "quantization_config")
    assert AutoTokenizer.from_pretrained(folder).model_max_length == model.config.max_position_embeddings == 8192


def test_a_second_use_fetches_nothing(folder):
    code = "from agentrl_smollm2 import package, model; package.weights = None; print(model.smollm2_135m())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(folder), "")


def test_a_run_on_tasks_that_nobody_chose_takes_what_it_suggests(folder):
    with Trainer(load_config(None, "agent.name=math", "model.name=smollm2-135m", environ={})) as trainer:
        chosen = {choice.key: choice.value for choice in trainer.check()}
    assert chosen == {**smollm2_135m.suggests, "training.learning_rate": 2e-5}
