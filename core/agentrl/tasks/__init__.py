"""Task sets: what agents are asked to do."""

from agentrl.tasks.contract import Task, TaskSet
from agentrl.tasks.loading import load_tasks

__all__ = ["Task", "TaskSet", "load_tasks"]
