"""Draw the picture of a run that the README shows: ``python scripts/draw_run.py`` trains ``math`` and draws its lines.

The lines are those of a run of the moment, in ``docs/assets/run.svg``; only the folder is written as a short name.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "assets" / "run.svg"
LEFT_OUT = ("loading", "starting", "evaluating", "rolling out", "learning", "saving")
STYLES = {"$": "bold", "after": "cyan", "completed": "green", "held-out": "green"}


def main() -> None:
    """Train, and write the picture. Raises where the run fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "agentrl", "train", "math", f"run.dir={folder}", "run.name=math"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        printed = (done.stderr + done.stdout).replace(folder, "runs")
    lines = ["$ agentrl train math", *(line for line in printed.splitlines() if not line.startswith(LEFT_OUT))]
    console = Console(record=True, width=112, file=io.StringIO())
    for line in lines:
        style = next((style for start, style in STYLES.items() if line.startswith(start)), "")
        console.print(Text(line.replace(sys.prefix + "/bin/", ""), style))
    picture = console.export_svg(title="agentrl")
    # A page fetches nothing from elsewhere: without the font that rich names, the reader's own is taken.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
