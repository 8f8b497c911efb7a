"""The training-step benchmark's other side: TRL's ``GRPOTrainer`` on the same prompts in the same order."""

from __future__ import annotations

import random
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import torch
from datasets import Dataset
from tests.benchmarks.sides.pace import Pace, Workload
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from agentrl.tasks.arithmetic import Arithmetic
from agentrl.training.task_order import TaskOrder
from agentrl_agents.math import SYSTEM
from agentrl_agents.tasks import question

__all__ = ["run"]


def run(workload: Workload, parent: Connection) -> None:
    """Train as ``workload`` says, in the pace that ``parent`` sets."""
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32)
    if workload.threads is not None:
        torch.set_num_threads(workload.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(workload.model),
            reward_funcs=reward,
            args=arguments(workload, folder),
            train_dataset=dataset(workload),
            callbacks=[_Paced(Pace(workload, parent))],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def arguments(workload: Workload, folder: str) -> GRPOConfig:
    """As agentrl's defaults are, where TRL's differ."""
    return GRPOConfig(
        output_dir=folder,
        seed=workload.seed,
        max_steps=workload.steps,
        per_device_train_batch_size=workload.micro_batch,
        gradient_accumulation_steps=workload.groups * workload.group_size // workload.micro_batch,
        num_generations=workload.group_size,
        max_completion_length=workload.max_tokens,
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        loss_type="grpo",
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def dataset(workload: Workload) -> Dataset:
    """The prompts that agentrl's ``math`` asks, in the order in which it walks the tasks."""
    tasks = Arithmetic(Arithmetic.Settings())
    taken = TaskOrder(tasks, workload.seed).take(workload.groups * workload.steps)
    return Dataset.from_list(
        [
            {
                "prompt": [
                    {"role": "system", "content": workload.system(SYSTEM)},
                    {"role": "user", "content": question(dict(task.data))},
                ],
                "answer": task.data["answer"],
            }
            for task in taken
        ]
    )


def reward(completions: list[Any], **_: Any) -> list[float]:
    return [random.random() for _ in completions]


class _Paced(TrainerCallback):
    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._pace.begin()

    def on_log(self, *_: Any, **told: Any) -> None:
        length = told["logs"].get("completions/mean_length")  # none in the totals at the end
        if length is not None:
            self._pace.step(length)
