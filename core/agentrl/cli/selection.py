"""Which run and which episodes a command is about: arguments and options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import click

from agentrl.cli.completion import complete_tool
from agentrl.errors import ConfigError, Side, near_matches
from agentrl.rollout.contract import Fate, Outcome, Phase
from agentrl.runs.contract import CountKey, EpisodeFilter, SortKey

if TYPE_CHECKING:
    from agentrl.runs.reader import Run

__all__ = ["NearChoice", "chosen_filters", "chosen_run", "episode_filters", "nothing_found", "sort_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

NEWEST = "newest"
"""What stands for the training run that was started last."""


class NearChoice(click.Choice[str]):
    """One of some words; for another word the error names what is near it."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        words = [str(each) for each in self.choices]
        if value not in words:
            self.fail(f"{str(value)!r} is none of the choices: {near_matches(str(value), words)}", parameter, context)
        return str(value)


_OPTIONS: dict[str, tuple[Any, str | None, str]] = {
    "phase": (NearChoice(get_args(Phase)), None, "Of training, or of one reading of the evaluations."),
    "step": (int, "N", "Trained by step N; of evaluations, after N steps."),
    "outcome": (NearChoice(get_args(Outcome)), None, "How they ended."),
    "fate": (NearChoice(get_args(Fate)), None, "What became of them in training."),
    "side": (NearChoice(get_args(Side)), None, "Failed on this side."),
    "min_reward": (float, "X", "With a reward of at least X."),
    "max_reward": (float, "X", "With a reward of at most X."),
    "task": (int, "N", "Of the task with this index in its task set."),
    "group": (int, "N", "Of the group with this number in its phase."),
    "version": (int, "N", "Begun under the policy after N steps."),
    "tool": (str, "NAME", "In which the policy called this tool."),
    "text": (str, "WORDS", 'Whose messages hold all WORDS; "quoted words" in a row, and begin* for what begins so.'),
}
"""Of each filter that the reader has: its type, its metavar and its help."""


def episode_filters(command: Command) -> Command:
    """Give a command an option for every filter of the reader; ``chosen_filters`` takes their values."""
    for name in reversed(list(EpisodeFilter.__annotations__)):
        kind, metavar, text = _OPTIONS[name]
        complete = complete_tool if name == "tool" else None
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=kind, metavar=metavar, help=text, shell_complete=complete)(command)
    return command


def sort_options(command: Command) -> Command:
    """Give a command the options ``--sort`` and ``--descending``."""
    command = click.option("--descending", is_flag=True, help="The highest first, or the last.")(command)
    sort = click.option(
        "--sort",
        type=NearChoice(get_args(SortKey)),
        default="committed",
        show_default=True,
        help="What they are sorted by.",
    )
    return sort(command)


def chosen_filters(options: dict[str, Any]) -> EpisodeFilter:
    """The filters among the ``options`` of a command, without those that were not given."""
    return cast(EpisodeFilter, {name: options[name] for name in _OPTIONS if options.get(name) is not None})


def chosen_run(name: str | None) -> Run:
    """The run of a folder or a name; the one that was started last for ``newest``, and where nothing is named.

    Raises ``ConfigError`` where there is none.
    """
    from agentrl.config import load_config
    from agentrl.runs.folder import newest_run
    from agentrl.runs.reader import Run, open_run

    place = load_config().run.dir.expanduser()
    if name is None or (name == NEWEST and not (place / name).exists()):
        return Run(newest_run(place))
    return open_run(name, runs=place)


def nothing_found(run: Run, filters: EpisodeFilter) -> str:
    """Why no episode of ``run`` matches ``filters``, as far as one filter alone is the cause.

    Raises ``ConfigError`` for a value that no episode of the run has, with those that are near it.
    """
    if not run.count():
        return f"the run {run.name} has no episodes yet"
    for name in (*get_args(CountKey), "group"):
        if name in filters and not run.count(**{name: filters[name]}):  # type: ignore[literal-required]
            _refuse(run, name, filters[name])  # type: ignore[literal-required]
    return f"no episode of {run.name} matches: {', '.join(f'{name}={value}' for name, value in filters.items())}"


def _refuse(run: Run, name: str, value: object) -> None:
    """Raise the ``ConfigError`` for a value that no episode has."""
    message = f"no episode of {run.name} has {name} {value}"
    if name == "group":
        known: list[Any] = [run.episodes(sort="group", descending=down, limit=1)[0].key.group for down in (False, True)]
    else:
        known = list(run.counts(cast(CountKey, name)))
    if not known:
        raise ConfigError(message, fix=f"no {name} is known of any of them")
    if isinstance(value, int):
        raise ConfigError(message, fix=f"they have {min(known)} to {max(known)}")
    raise ConfigError(message, fix=near_matches(str(value), map(str, known)))
