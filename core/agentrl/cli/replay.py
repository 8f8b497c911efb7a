"""``agentrl replay``: score the stored episodes of a run again, or train from them, without sampling anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.boundary import code_of
from agentrl.cli.completion import complete_algorithm, complete_checkpoint, complete_reward
from agentrl.cli.output import print_json
from agentrl.cli.root import App
from agentrl.cli.settings import split_arguments
from agentrl.cli.train import print_settings, print_summary
from agentrl.reporting.plain import reward_text

if TYPE_CHECKING:
    from agentrl.config.section import PartModel
    from agentrl.rollout.contract import Phase
    from agentrl.training.rescoring import Rescoring

__all__ = ["replay"]

_EPILOG = """\b
Examples:
  agentrl replay runs/quickstart --reward numeric-match
  agentrl replay runs/quickstart --reward numeric-match,my_reward.py:closeness --answer last-message
  agentrl replay runs/quickstart --reward judge reward.url=http://127.0.0.1:8000/v1 reward.model=NAME \\
    reward.rubric='The answer is right and brief.'
  agentrl replay runs/quickstart --algorithm rloo run.name=by-rloo
  agentrl replay runs/quickstart --algorithm grpo --reward my_reward.py:closeness
"""
_SHOWN = 5
"""Episodes that are shown of those whose reward changed the most."""


@click.command(epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar="RUN [KEY=VALUE]...", shell_complete=complete_checkpoint)
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    metavar="NAME[,NAME]...",
    shell_complete=complete_reward,
    help="Rewards to score by; may be repeated.",
)
@click.option(
    "--algorithm",
    metavar="NAME",
    shell_complete=complete_algorithm,
    help="Train from the episodes by this algorithm, into a new run.",
)
@click.option(
    "--answer",
    type=click.Choice(["stored", "last-message"]),
    help="What is scored: the answer that the store holds, or the text of the last message of the policy.",
)
@click.option(
    "--phase",
    type=click.Choice(["train", "eval", "eval-greedy"]),
    default="train",
    show_default=True,
    help="Which episodes are scored: those of training, or of the evaluations.",
)
@click.option("--dry-run", is_flag=True, help="With --algorithm: show and check every setting without training.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def replay(
    app: App,
    arguments: tuple[str, ...],
    rewards: tuple[str, ...],
    algorithm: str | None,
    answer: str | None,
    phase: Phase,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Score the stored episodes of RUN by other rewards, or train from them by another algorithm.

    With --reward the episodes are scored again as they ended, and what that does to the ranking within each group is
    printed. A reward that fails is counted. No model is called and nothing is written.

    With --algorithm a new run trains from the episodes, in the order in which the steps of RUN took them, under their
    own rewards or under the one of --reward. Its settings are those of RUN, but for KEY=VALUE.
    """
    from agentrl.config import resolve_config, unused_by_replay
    from agentrl.errors import ConfigError
    from agentrl.reporting.reporter import default_reporter
    from agentrl.runs.reader import open_run
    from agentrl.training.trainer import Trainer

    given, settings = split_arguments(arguments, "run")
    if given is None:
        raise ConfigError("nothing says which run to replay", fix="name one: agentrl replay runs/NAME --reward NAME")
    names = _names(rewards)
    if algorithm is None and not names:
        raise ConfigError(
            "nothing says what to do with the episodes",
            fix="score them again with --reward NAME, or train from them with --algorithm NAME",
        )
    _check_options(settings, algorithm, names, phase, dry_run=dry_run)
    places = [each for each in settings if _key(each).split(".")[0] == "run"]
    run = open_run(given, runs=resolve_config(None, *places).config.run.dir)
    first = () if algorithm is None else (f"algorithm={algorithm}",)
    scored = (f"reward={names[0]}",) if len(names) == 1 else ()
    # The names come first, so that keys such as `algorithm.advantage.model=…` are set beside them.
    settings = (*first, *scored, *settings, *(() if answer is None else (f"replay.answer={answer}",)))
    resolved = resolve_config(run.path / "config.yaml", *settings)
    reporter = default_reporter(tracebacks=app.debug)
    with Trainer(resolved.config, plugins=app.plugins, reporter=reporter) as trainer:
        dead = unused_by_replay(resolved.provenance, trains=algorithm is not None, scores=bool(names))
        if dry_run:
            if dead:
                raise ConfigError("; ".join(map(str, dead)), fix="leave such keys out")
            print_settings(resolved, trainer.check_replay(run.path, rescored=bool(names)))
            return 0
        for key in dead:
            trainer.reporter.warning(str(key))
        if algorithm is None:
            parts = [_part(name) for name in names] if len(names) > 1 else []
            rescored = trainer.rescore(run.path, *parts, phase=phase)
            trainer.close()
            _print(rescored, str(run.path), as_json)
            return 0
        summary = trainer.replay(run.path, rescored=bool(names))
    print_summary(resolved.config, summary, as_json)
    return code_of(summary.outcome, summary.signal)


def _check_options(
    settings: tuple[str, ...], algorithm: str | None, names: list[str], phase: Phase, *, dry_run: bool
) -> None:
    """Raise ``ConfigError`` for options that contradict each other or ``settings``, or would have no effect."""
    from agentrl.errors import ConfigError

    if algorithm is not None and len(names) > 1:
        raise ConfigError(f"--algorithm trains by one reward, not by {', '.join(names)}", fix="name one of them")
    if algorithm is not None and phase != "train":
        raise ConfigError(
            f"--phase {phase} has no effect beside --algorithm, which trains from the episodes of training",
            fix="leave one of the two out",
        )
    if dry_run and algorithm is None:
        raise ConfigError(
            "--dry-run has no effect without --algorithm: scoring again writes nothing", fix="leave it out"
        )
    for setting in settings:
        key = _key(setting)
        for option, section, is_given in (
            ("--algorithm", "algorithm", algorithm is not None),
            ("--reward", "reward", bool(names)),
        ):
            if is_given and key in (section, f"{section}.name"):
                raise ConfigError(f"{setting} and {option} both name the {section}", fix="leave one of them out")
        if len(names) > 1 and key.startswith("reward."):
            raise ConfigError(
                f"{setting} is a setting of one reward, and --reward names {len(names)}",
                fix="score by one reward at a time",
            )
        if key == "replay.run":
            raise ConfigError(f"{setting} names a run beside the argument RUN", fix="leave it out")


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _names(rewards: tuple[str, ...]) -> list[str]:
    return [name.strip() for each in rewards for name in each.split(",") if name.strip()]


def _part(name: str) -> PartModel:
    from agentrl.config.section import PartModel

    return PartModel(name=name)


def _print(rescored: list[Rescoring], run: str, as_json: bool) -> None:
    documents = [each.to_json() for each in rescored]
    if as_json:
        print_json({"run": run, "rewards": documents})
        return
    for each, numbers in zip(rescored, documents, strict=True):
        for line in _lines(each, numbers):
            click.echo(line)


def _lines(rescored: Rescoring, numbers: dict[str, Any]) -> list[str]:
    lines = [f"{rescored.reward}: {numbers['scored']:,} of {numbers['episodes']:,} episodes scored"]
    lines += [f"  {each['count']:,}x {each['reason']} ({each['episode']})" for each in numbers["not_scored"]]
    if numbers["mean_before"] is None:
        return [*lines, "  none of them had a reward to compare with"]
    before, after = reward_text(numbers["mean_before"]), reward_text(numbers["mean_after"])
    lines.append(f"  mean reward: {before} before, {after} after; {numbers['changed']:,} episodes changed")
    told_apart = [numbers["groups"] - numbers[f"groups_without_difference_{when}"] for when in ("before", "after")]
    lines.append(f"  groups that it tells apart: {told_apart[0]} before, {told_apart[1]} after, of {numbers['groups']}")
    tau = numbers["kendall_tau"]
    lines.append(
        f"  ranking within groups: {'no group to compare' if tau is None else f'Kendall tau {tau:.3f}'}, "
        f"{numbers['pairs_flipped']:,} of {numbers['pairs']:,} pairs flipped, another best episode in "
        f"{numbers['groups_with_another_best']:,} groups"
    )
    for each in rescored.most_changed(_SHOWN):
        assert each.before is not None
        assert each.after is not None
        lines.append(f"  {each.episode.key}: {reward_text(each.before)} → {reward_text(each.after)}")
    return lines
