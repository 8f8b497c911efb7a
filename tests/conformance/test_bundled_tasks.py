"""The bundled task sets hold to the contract of task sets."""

from pathlib import Path

from agentrl.testing import TaskSetConformance

pytest_plugins = ["agentrl.testing"]

HERE = Path(__file__).parent


class TestArithmetic(TaskSetConformance):
    tasks = "arithmetic"


class TestHeldOutArithmetic(TaskSetConformance):
    tasks = "arithmetic-heldout"


class TestReasoningGym(TaskSetConformance):
    tasks = {"name": "reasoning-gym", "dataset": "basic_arithmetic", "size": 20}  # noqa: RUF012


class TestFile(TaskSetConformance):
    tasks = str(HERE / "questions.jsonl")


class TestGsm8k(TaskSetConformance):
    tasks = {"name": "gsm8k", "path": str(HERE / "gsm8k.jsonl")}  # noqa: RUF012


class TestDatasets(TaskSetConformance):
    tasks = {"name": "datasets", "path": str(HERE / "questions.jsonl")}  # noqa: RUF012
