"""``agentrl export-episodes``: the episodes of a run as conversations or traces, for other programs."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from agentrl.cli.completion import complete_run
from agentrl.cli.selection import NearChoice, chosen_filters, chosen_run, episode_filters, nothing_found
from agentrl.errors import ConfigError, RunError

if TYPE_CHECKING:
    from agentrl.runs.contract import EpisodeFilter
    from agentrl.runs.reader import Run

__all__ = ["export_episodes"]

_EPILOG = """\b
Examples:
  agentrl export-episodes runs/quickstart good.jsonl --min-reward 1
  agentrl sft good.jsonl
  agentrl export-episodes quickstart traces.jsonl --format otel --phase eval
  agentrl export-episodes quickstart - --step 20 | jq .messages
"""


@click.command(epilog=_EPILOG)
@click.argument("run", shell_complete=complete_run)
@click.argument("out")
@click.option(
    "--format",
    "form",
    type=NearChoice(("chat", "otel")),
    default="chat",
    show_default=True,
    help="Conversations of the chat completions API, or OpenTelemetry traces.",
)
@episode_filters
@click.option("--overwrite", is_flag=True, help="Replace OUT where it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as one JSON document.")
def export_episodes(run: str, out: str, form: str, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write the episodes of RUN into the file OUT, one JSON object a line; to stdout where OUT is `-`.

    RUN is a run folder, a name, or `newest`. With --format chat a line is a conversation, as `agentrl sft` and other
    trainers read it: `messages` and `tools`. Each answer of the policy counts in one; what it did not say itself has
    `weight` 0. Without --phase and --outcome they are the rewarded episodes of training.

    With --format otel a line holds the trace of an episode in OTLP, by the semantic conventions for generative AI: the
    agent, its calls to the model, and its tools.
    """
    from agentrl.cli.output import print_json

    if out == "-" and (as_json or overwrite):
        given = "--json" if as_json else "--overwrite"
        raise ConfigError(f"{given} has no effect where OUT is `-`", fix="leave it out, or name a file")
    chosen, filters = chosen_run(run), chosen_filters(options)
    if form == "chat":
        filters = cast("EpisodeFilter", {"phase": "train", "outcome": "rewarded", **filters})
    matching = chosen.count(**filters)
    if not matching:
        raise ConfigError(nothing_found(chosen, filters))
    path = None if out == "-" else Path(out).expanduser()
    if path is not None and path.is_dir():
        raise ConfigError(f"{out or '.'} is a folder", fix="name a file in it")
    if path is not None and path.exists() and not overwrite:
        raise ConfigError(f"{out} exists", fix="name another file, or add --overwrite")
    left_out: Counter[str] = Counter()
    lines = (_chats if form == "chat" else _traces)(chosen, filters, left_out)
    with _written(path) as write, _progress(matching) as advance:
        count = 0
        for written in lines:
            for line in written:
                write(_encoded(line))
                count += 1
            advance()
    if as_json:
        print_json({"file": out, "format": form, "episodes": matching, "lines": count, "left_out": dict(left_out)})
        return
    what = "conversations" if form == "chat" else "traces"
    click.echo(f"{count:,} {what} of {matching:,} episodes: {out}", err=path is None)
    for reason, times in left_out.most_common():
        click.echo(f"left out {times:,}x: {reason}", err=True)


def _chats(run: Run, filters: EpisodeFilter, left_out: Counter[str]) -> Iterator[list[dict[str, Any]]]:
    """The conversations of each episode. Those that nothing can be learned from are counted by the reason."""
    from agentrl.reporting.chat import chats

    for episode in run.load_episodes(**filters):
        lines = []
        for chat in chats(episode):
            if chat.fault is not None:
                left_out[chat.fault] += 1
                continue
            line: dict[str, Any] = {"messages": chat.messages}
            line |= {} if chat.tools is None else {"tools": chat.tools}
            line |= {"run": run.name, "episode": str(episode.key), "reward": episode.reward}
            lines.append(line if episode.trained_step is None else {**line, "step": episode.trained_step})
        yield lines


def _traces(run: Run, filters: EpisodeFilter, left_out: Counter[str]) -> Iterator[list[dict[str, Any]]]:
    from agentrl.reporting.otel import Traces

    info = run.info
    traces = Traces(run.name, info.agent, info.model, (run.path / "config.yaml").stat().st_mtime)
    return ([traces.line(episode)] for episode in run.load_episodes(**filters))


def _encoded(line: dict[str, Any]) -> bytes:
    import json

    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # Half a surrogate pair, which JSON can only write as an escape.
        return json.dumps(line).encode() + b"\n"


@contextmanager
def _written(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Yields what writes to ``path``, which is there when all of it is, or to stdout."""
    if path is None:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file.write
        aside.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}", fix="name a file in a folder") from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """Yields what is called for each of ``total`` episodes; a bar shows them where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("exporting", total=total)
        yield lambda: bar.advance(task)
