"""The snippets of the README and of docs/, and a folder in which they can be run.

A snippet is a fenced block. One with a title is a file of that name, which others use. A comment before a block,
``<!-- not run: the reason -->``, says why a test cannot run it; it is then held to what can be told without.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONFIG", "PAGES", "ROOT", "Snippet", "furnish", "snippets"]

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIG = ROOT / "agents/agentrl_agents/configs/quickstart.yaml"

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n)?"
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Snippet:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None
    """Why a test cannot run it."""

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each command that a console shows after its prompt, comments left out."""
        text = self.text.replace("\\\n", " ")
        return [shlex.split(line[2:], comments=True) for line in text.splitlines() if line.startswith("$ ")]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(language: str) -> list[Snippet]:
    """Those of every page in one language."""
    return [snippet for page in PAGES for snippet in _of_page(page) if snippet.language == language]


def _of_page(page: Path) -> Iterator[Snippet]:
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Snippet(page.name, line, found["language"], found["title"], found["text"], found["why"])


def furnish(folder: Path) -> None:
    """Put into ``folder`` what the snippets refer to: files with titles, tasks and a config."""
    for page in PAGES:
        for snippet in _of_page(page):
            if snippet.title is not None:
                (folder / snippet.title).write_text(snippet.text, encoding="utf-8")
    tasks = [{"question": "What is the capital of France?", "answer": "Paris"}] * 4
    for name in ("questions", "held-out"):
        lines = "".join(json.dumps(task) + "\n" for task in tasks)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        rows = "problem,answer\n" + "".join(f"{task['question']},{task['answer']}\n" for task in tasks)
        (folder / f"{name}.csv").write_text(rows, encoding="utf-8")
    (folder / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
