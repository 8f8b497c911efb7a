"""GSM8K as its authors publish it: word problems, each with a worked solution and the answer at its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Strict

from agentrl.config.models import Section
from agentrl.errors import ConfigError
from agentrl.tasks.contract import Task
from agentrl.tasks.jsonl import JsonRows, json_lines

__all__ = ["Gsm8kTasks"]

_MARK = "#### "


class Gsm8kTasks(JsonRows):
    """`question`, `answer` (the number after ``####``, without thousands separators) and `solution`."""

    class Settings(Section):
        """Keys of `gsm8k`."""

        path: Annotated[Path, Strict(False)]
        """`train.jsonl` or `test.jsonl` of the data set (Cobbe et al., 2021)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(Path(os.path.expanduser(settings.path)), json_lines, _task)


def _task(row: Task, place: str) -> Task:
    question, solution = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str) or _MARK not in solution:
        raise ConfigError(
            f"{place} is not GSM8K: it needs a question, and an answer that ends in '#### ' and a number",
            fix="use tasks {name: jsonl, path: …} for files of another shape",
        )
    working, answer = solution.rsplit(_MARK, 1)
    return {"question": question, "answer": answer.strip().replace(",", ""), "solution": working.strip()}
