"""Task sets: what agents are asked to do.

``contract`` says what a task set is, ``loading`` builds the one that a config names, and the other modules are the
task sets that are built in: generated arithmetic, files of JSON, JSON lines and CSV, data sets of the ``datasets``
library, and generated tasks of ``reasoning-gym``.
"""

from agentrl.tasks.contract import Task, TaskSet
from agentrl.tasks.loading import load_tasks

__all__ = ["Task", "TaskSet", "load_tasks"]
