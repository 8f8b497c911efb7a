"""``agentrl episode``: one episode as a person reads it, or all of it as JSON."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.completion import complete_episode, complete_run
from agentrl.cli.output import print_json
from agentrl.cli.selection import chosen_run
from agentrl.errors import RunError, near_matches, one_line, printable

if TYPE_CHECKING:
    from agentrl.reporting.transcript import Exchange, Turn
    from agentrl.rollout.contract import Episode, EpisodeKey
    from agentrl.runs.contract import EpisodeRow, TrainedTokens
    from agentrl.runs.reader import Run
    from agentrl.tokens.contract import Span

__all__ = ["episode", "episode_lines"]

_EPILOG = """\b
Examples:
  agentrl episode train-12-3-0
  agentrl episode quickstart/train-12-3-0 --tokens
  agentrl episode eval-0-5-0 --run runs/quickstart --json | jq .calls
"""
_INDENT = "    "
_WIDEST = 120
"""Characters of a line of text on a terminal: longer ones are hard to read."""
_COLOURS = {"system": "magenta", "developer": "magenta", "user": "blue", "assistant": "green", "tool": "cyan"}


@click.command(epilog=_EPILOG)
@click.argument("key", shell_complete=complete_episode)
@click.option(
    "--run",
    metavar="RUN",
    shell_complete=complete_run,
    help="The run that it is of, a folder or a name; by default the training run that was started last.",
)
@click.option("--tokens", is_flag=True, help="Show every sampled token, and what was made of it in training.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as one JSON document.")
def episode(key: str, run: str | None, tokens: bool, as_json: bool) -> None:
    """Show the episode of KEY, such as train-12-3-0 or RUN/train-12-3-0: what was said, and what came of it.

    A call of the model is shown with what it adds to the conversation that it continues. With --tokens each token is
    shown with its log-probability, the policy version that sampled it, its advantage, and whether it was trained.
    """
    folder, slash, name = key.strip().rpartition("/")
    if slash and run is not None:
        from agentrl.errors import ConfigError

        raise ConfigError(f"{key!r} and --run {run} both name a run", fix="leave one of them out")
    chosen = chosen_run(folder if slash else run)
    found, row = _found(chosen, name)
    trained = chosen.trained(found.key)
    if as_json:
        print_json(_document(chosen, found, row, trained))
        return
    text_of = _texts(chosen) if tokens else None
    width = min(shutil.get_terminal_size().columns, _WIDEST) if sys.stdout.isatty() else None
    for line in episode_lines(found, row, trained, run=chosen.name, width=width, text_of=text_of, tokens=tokens):
        click.echo(line)


def _found(run: Run, name: str) -> tuple[Episode, EpisodeRow]:
    """The episode of a key and its row in lists. Raises the error that names the keys which are near."""
    from agentrl.runs.queries import parse_key

    key = parse_key(name)
    rows = run.episodes(phase=key.phase, group=key.group)
    row = next((row for row in reversed(rows) if row.key == key), None)
    if row is None:
        raise RunError(f"the run {run.name} has no episode {key}", fix=_near(run, key, rows))
    return run.episode(key), row


def _near(run: Run, key: EpisodeKey, of_group: Sequence[EpisodeRow]) -> str:
    if of_group:
        return f"group {key.group} of {key.phase} has {', '.join(dict.fromkeys(str(row.key) for row in of_group))}"
    of_phase = [run.episodes(phase=key.phase, sort="group", descending=down, limit=1) for down in (False, True)]
    if of_phase[0]:
        return f"the groups of {key.phase} go from {of_phase[0][0].key.group} to {of_phase[1][0].key.group}"
    phases = list(map(str, run.counts("phase")))
    return near_matches(key.phase, phases) if phases else "it has no episodes yet"


def _document(run: Run, found: Episode, row: EpisodeRow, trained: TrainedTokens | None) -> dict[str, Any]:
    """All that is stored of an episode."""
    values = {name: value for name, value in asdict(row).items() if name not in ("id", "key", "call_count")}
    failure = found.failure
    return {
        "run": str(run.path),
        "key": str(found.key),
        **asdict(found.key),
        **values,
        "failure": None if failure is None else _failure(failure),
        "setbacks": list(map(_failure, found.setbacks)),
        "reward_parts": dict(found.reward_parts),
        "call_rewards": dict(found.call_rewards),
        "task_data": dict(found.data),
        "answer": found.answer,
        "calls": [asdict(call) for call in found.calls],
        "tree": found.tree.to_json(),
        "trained": None if trained is None else _without_nan(asdict(trained)),
    }


def _failure(failure: Any) -> dict[str, str]:
    return {"side": failure.side, "reason": failure.reason, "fingerprint": failure.fingerprint}


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no number for what is none."""
    return {
        name: [None if each != each else each for each in value] if isinstance(value, list | tuple) else value
        for name, value in values.items()
    }


def _texts(run: Run) -> Callable[[int], str] | None:
    """The texts of tokens; where they cannot be known, that is said and the ids do alone."""
    from agentrl.view.pieces import pieces_of

    pieces = pieces_of(run)
    if pieces.missing:
        click.echo(f"note: {one_line(pieces.missing)}", err=True)
        return None
    return lambda token: pieces.text([token])


def episode_lines(
    episode: Episode,
    row: EpisodeRow,
    trained: TrainedTokens | None = None,
    *,
    run: str,
    width: int | None = None,
    tokens: bool = False,
    text_of: Callable[[int], str] | None = None,
) -> Iterator[str]:
    """The lines that show an episode, none of which holds a control character but those that colour it.

    Texts are wrapped at ``width`` characters, or not at all.
    """
    from agentrl.reporting.transcript import transcript

    yield from _heading(episode, row, run)
    before: int | None = None
    sampled = _sampled(episode) if tokens else {}
    for index, exchange in enumerate(transcript(episode)):
        yield ""
        if index and exchange.follows != before:
            begun = "begins a conversation" if exchange.follows is None else f"goes on from call {exchange.follows + 1}"
            yield click.style(f"── call {index + 1} {begun} ──", dim=True)
        for turn in exchange.given:
            yield from _turn(turn, turn.role if turn.tool is None else f"{turn.role} {turn.tool}", width)
        yield from _turn(exchange.answer, f"assistant, call {index + 1}: {_call_text(episode, exchange)}", width)
        if (span := sampled.get(exchange.call.id)) is not None:
            yield from _tokens(*span, trained, text_of)
        before = index


def _heading(episode: Episode, row: EpisodeRow, run: str) -> Iterator[str]:
    from agentrl.reporting.plain import duration, reward_text

    came_to = episode.outcome if episode.reward is None else f"reward {reward_text(episode.reward)}"
    counts = f"{_many(len(episode.calls), 'call')}, {_many(row.sampled_tokens, 'token')}, {duration(episode.seconds)}"
    yield f"{click.style(str(episode.key), bold=True)} of {printable(run)}: {came_to}; {counts}"
    facts = {"policy version": str(episode.version)}
    if episode.attempts > 1:
        facts["attempts"] = str(episode.attempts)
    if episode.trained_step is not None:
        facts["step"] = str(episode.trained_step)
    if row.fate is not None:
        facts["fate"] = row.fate.replace("_", " ")
    if row.advantage is not None:
        facts["mean advantage"] = f"{row.advantage:+.3f}"
    if row.surprise is not None:
        facts["surprise"] = f"{row.surprise:.3f} nats a token"
    yield f"  {', '.join(f'{name} {value}' for name, value in facts.items())}"
    if episode.reward_parts:
        parts = ", ".join(f"{one_line(name)} {reward_text(value)}" for name, value in episode.reward_parts.items())
        yield f"  parts of the reward: {parts}"
    if episode.failure is not None:
        yield click.style(f"  failed: {one_line(episode.failure)}", fg="red")
    if episode.mistake is not None:
        yield click.style(f"  mistake of the policy: {one_line(episode.mistake)}", fg="yellow")
    for setback in episode.setbacks:
        yield click.style(f"  tried again after {one_line(setback)}", fg="yellow")
    yield f"  task: {one_line(json.dumps(dict(episode.data), ensure_ascii=False))}"
    if episode.answer is not None:
        yield f"  answer: {one_line(json.dumps(episode.answer, ensure_ascii=False))}"


def _call_text(episode: Episode, exchange: Exchange) -> str:
    """What is known of a call beside its messages, in a few words."""
    from agentrl.reporting.plain import duration, reward_text

    call = exchange.call
    told = [_many(call.completion_tokens, "token"), duration(call.seconds), one_line(call.finish_reason)]
    if (reward := episode.call_rewards.get(call.id)) is not None:
        told.append(f"reward {reward_text(reward)}")
    if not call.delivered:
        told.append("not delivered")
    if call.fork_reason is not None:
        told.append(f"history rendered anew: {one_line(call.fork_reason)}")
    for what, names in (
        ("overridden", call.overridden),
        ("without", call.unmet),
        ("control tokens", call.control_tokens),
    ):
        if names:
            told.append(f"{what} {one_line(' '.join(names))}")
    return ", ".join(told)


def _turn(turn: Turn, title: str, width: int | None) -> Iterator[str]:
    yield click.style(one_line(title), fg=_COLOURS.get(turn.role, "white"), bold=True)
    for line in _wrapped(turn.thinking, width):
        yield click.style(line, dim=True, italic=True)
    yield from _wrapped(turn.text, width)
    for call in turn.calls:
        yield f"{_INDENT}→ {click.style(one_line(call.name), bold=True)} {one_line(call.arguments)}"


def _wrapped(text: str, width: int | None) -> Iterator[str]:
    for line in printable(text).strip("\n").expandtabs(4).split("\n") if text.strip() else ():
        if width is None or len(line) + len(_INDENT) <= width:
            yield f"{_INDENT}{line}".rstrip()
            continue
        yield from textwrap.wrap(
            line, width, initial_indent=_INDENT, subsequent_indent=_INDENT, drop_whitespace=False, tabsize=4
        )


def _sampled(episode: Episode) -> dict[str, tuple[Span, int]]:
    """The sampled span of each call, and how many sampled tokens stand before it in the tree."""
    found: dict[str, tuple[Span, int]] = {}
    before = 0
    for span in episode.tree.spans:
        if span.sampled is not None:
            found[span.sampled.call] = span, before
            before += len(span.ids)
    return found


def _tokens(
    span: Span, start: int, trained: TrainedTokens | None, text_of: Callable[[int], str] | None
) -> Iterator[str]:
    """A line for each token of a completion."""
    assert span.sampled is not None
    rows = [("", "id", "text", "logprob", "version", "advantage", "fate")]
    for index, token in enumerate(span.ids):
        advantage, fate = "", ""
        if trained is not None:
            value, fate = trained.advantages[start + index], trained.fates[start + index].replace("_", " ")
            advantage = "" if value != value else f"{value:+.4f}"
        text = "" if text_of is None else printable(json.dumps(text_of(token), ensure_ascii=False))
        logprob, version = f"{span.sampled.logprobs[index]:.4f}", str(span.sampled.versions[index])
        rows.append((str(index), str(token), text, logprob, version, advantage, fate))
    columns = [(name, cells) for name, *cells in zip(*rows, strict=True) if any(cells)]
    names = [name for name, _ in columns]
    widths = [max(len(name), *map(len, cells)) for name, cells in columns]
    for number, line in enumerate([names, *zip(*(cells for _, cells in columns), strict=True)]):
        text = "  ".join(map(_justified, names, line, widths))
        yield click.style(f"{_INDENT}{text}".rstrip(), dim=not number)


def _justified(name: str, cell: str, width: int) -> str:
    return cell.ljust(width) if name in ("text", "fate") else cell.rjust(width)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
