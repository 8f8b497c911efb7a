"""What the shell completes: names, keys and their values, runs and checkpoints; and the scripts by which it does.

Candidates come from metadata and source: no plugin is imported. click's own scripts are made for options. Settings
need more: bash splits `key=value` at the equals sign, and a completed key may not be followed by a space. The scripts
hand over the line up to the cursor, and are given one candidate a line, with a tab before its help.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast, get_args

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

from agentrl.cli.catalogue import Catalogue
from agentrl.cli.root import App
from agentrl.environ import DEBUG
from agentrl.errors import AgentRLError
from agentrl.plugins.declared import Key
from agentrl.rollout.contract import Phase

if TYPE_CHECKING:
    from agentrl.runs.contract import EpisodeFilter
    from agentrl.runs.reader import Run

__all__ = [
    "add_shells",
    "complete_algorithm",
    "complete_checkpoint",
    "complete_data",
    "complete_environment",
    "complete_episode",
    "complete_keys",
    "complete_reward",
    "complete_run",
    "complete_tool",
    "complete_training",
    "paths_like",
]

Items = list[CompletionItem]

_RUNS = "run.dir"
_KEYS = 200
"""Episodes that are offered at once; who has written more of a key is offered those that begin so."""
_LISTED = ("trackers", "normalisers")
"""Kinds of which a key takes a list."""


def complete_training(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """An agent's name or file, then settings."""
    catalogue, given = _catalogue(context), _given(context, parameter)
    names: Items = []
    if not any("=" not in argument for argument in given):
        agents = next(part for part in catalogue.parts() if part.key == "agent")
        names = [*_items(catalogue.names(agents)), *paths_like(incomplete, ".py")]
    return _either(names, catalogue, given, incomplete)


def complete_checkpoint(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """A run, one of its checkpoints or another model's folder, then settings."""
    catalogue, given = _catalogue(context), _given(context, parameter)
    names: Items = []
    if not any("=" not in argument for argument in given):
        names = _models(catalogue, given, incomplete)
    return _either(names, catalogue, given, incomplete)


def complete_data(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """A file of JSON lines or a run, then settings."""
    catalogue, given = _catalogue(context), _given(context, parameter)
    names: Items = []
    if not any("=" not in argument for argument in given):
        runs = _runs(given)
        known = {item.value for item in runs}
        names = [*runs, *(path for path in paths_like(incomplete, ".jsonl") if path.value.rstrip("/") not in known)]
    return _either(names, catalogue, given, incomplete)


def complete_algorithm(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The name of an algorithm."""
    return _named("algorithm", context, incomplete)


def complete_reward(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The name of a reward function, or the file of one."""
    return [*_named("reward", context, incomplete), *paths_like(incomplete, ".py")]


def _named(key: str, context: click.Context, incomplete: str) -> Items:
    """The names that the config's ``key`` takes."""
    catalogue = _catalogue(context)
    part = next(part for part in catalogue.parts() if part.key == key)
    return _starting(_items(catalogue.names(part)), incomplete)


def _runs(given: Iterable[str]) -> Items:
    """The runs in the folder of runs, as paths."""
    from agentrl.runs.folder import run_names

    folder = Path(dict(argument.split("=", 1) for argument in given if "=" in argument).get(_RUNS, "runs"))
    return _items(str(folder / name) for name in run_names(folder))


def complete_run(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The runs in the folder of runs, by name, and other folders."""
    from agentrl.runs.folder import run_names

    return [*_items(run_names("runs")), *paths_like(incomplete, None)]


def complete_episode(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The keys of a run's episodes, the newest first: of the run that is named, or that stands before a slash."""
    folder, slash, begun = incomplete.rpartition("/")
    run = _run(folder if slash else context.params.get("run"))
    if run is None:
        return _items(f"{name}/" for name in _run_names() if name.startswith(incomplete)) if slash else []
    keys = [str(row.key) for row in run.episodes(descending=True, limit=_KEYS, **_begun_key(begun))]
    runs = [] if slash or context.params.get("run") else [f"{name}/" for name in _run_names()]
    return _starting(_items([*(f"{folder}{slash}{key}" for key in dict.fromkeys(keys)), *runs]), incomplete)


def complete_tool(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The tools that the policy has called in the run that is named, or else in the newest."""
    run = _run(context.params.get("run"))
    return [] if run is None else _starting(_items(map(str, run.counts("tool"))), incomplete)


def _begun_key(text: str) -> EpisodeFilter:
    """The filters that the whole parts of a key make, of which the last one is not written to its end."""
    *parts, _ = re.split(r"(?<!eval)-", text)
    numbers = dict(zip(("group", "task"), filter(str.isdigit, parts[1:]), strict=False))
    phase = {"phase": parts[0]} if parts and parts[0] in get_args(Phase) else {}
    return cast("EpisodeFilter", phase | {name: int(number) for name, number in numbers.items()})


def _run(name: str | None) -> Run | None:
    """The run of that name, or the newest; ``None`` where there is none."""
    from agentrl.cli.selection import chosen_run

    try:
        return chosen_run(name)
    except AgentRLError:
        return None


def _run_names() -> list[str]:
    from agentrl.runs.folder import run_names

    return run_names("runs")


def complete_keys(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Keys, sections among them, and the names of parts after an equals sign."""
    catalogue = _catalogue(context)
    parts = {part.key: part for part, _ in catalogue.all_parts({})}
    wanted, equals, _ = incomplete.partition("=")
    if equals:
        names = catalogue.names(parts[wanted]) if wanted in parts else []
        return _starting(_items(f"{wanted}={name}" for name in names), incomplete)
    keys = {key.name: _first(key.help) for key in catalogue.all_keys()}
    sections = {name.rpartition(".")[0]: "" for name in keys if "." in name}
    return _starting([CompletionItem(name, help=text) for name, text in sorted((sections | keys).items())], incomplete)


def complete_environment(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    """The name of an environment."""
    return _starting(_items(_environments()), incomplete)


def _environments() -> list[str]:
    from agentrl.environments.environment import environments

    return [known.name for known in environments()]


def _either(names: Items, catalogue: Catalogue, given: Iterable[str], incomplete: str) -> Items:
    """Names, and settings once something is written or the name is there: before that they would drown the names."""
    settings = _settings(catalogue, given, incomplete) if incomplete or not names else []
    return _starting([*names, *settings], incomplete)


def _catalogue(context: click.Context) -> Catalogue:
    from agentrl.cli.catalogue import agents_elsewhere

    return Catalogue(context.ensure_object(App).plugins, agents_elsewhere())


def _given(context: click.Context, parameter: click.Parameter) -> tuple[str, ...]:
    """The arguments before the one that is being completed."""
    return tuple(context.params.get(parameter.name or "") or ())


def _settings(catalogue: Catalogue, given: Iterable[str], incomplete: str) -> Items:
    chosen = dict(argument.split("=", 1) for argument in given if "=" in argument)
    if agents := [argument for argument in given if "=" not in argument]:
        chosen["agent"] = agents[0]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [CompletionItem(f"{key}={item.value}") for item in _values(catalogue, chosen, key, value)]
    keys = [*catalogue.all_keys(), *_keys_of_parts(catalogue, chosen, incomplete)]
    return [CompletionItem(f"{each.name}=", help=_first(each.help)) for each in _unlike(keys, chosen)]


def _keys_of_parts(catalogue: Catalogue, chosen: Mapping[str, str], incomplete: str) -> Iterator[Key]:
    """The keys of those parts that are being written about: the source of others is not looked into."""
    for part, name in catalogue.all_parts(chosen):
        holder = f"{part.below}."
        if incomplete and (incomplete.startswith(holder) or holder.startswith(incomplete)):
            yield from catalogue.keys_of(part, name)


def _unlike(keys: Iterable[Key], chosen: Mapping[str, str]) -> Iterator[Key]:
    """``keys`` without what is set already, or is set by the key of which it is the name."""
    known = {key.name: key for key in keys}
    for name, key in known.items():
        holder, _, last = name.rpartition(".")
        if name not in chosen and not (last in ("name", "type") and holder in known):
            yield key


def _values(catalogue: Catalogue, chosen: Mapping[str, str], key: str, value: str) -> Items:
    """What a key takes, as far as that is enumerated or lies in a folder."""
    parts = {part.key: (part, name) for part, name in catalogue.all_parts(chosen)}
    if key in ("model", "model.name"):
        return _models(catalogue, [f"{each}={name}" for each, name in chosen.items()], value)
    holder, _, last = key.rpartition(".")
    if (named := parts.get(key) or (parts.get(holder) if last in ("name", "type") else None)) is not None:
        part, _ = named
        files = paths_like(value, ".py" if part.kind == "agents" else "") if part.kind in ("agents", "tasks") else []
        return [*_items(f"[{name}]" if part.kind in _LISTED else name for name in catalogue.names(part)), *files]
    keys = [*catalogue.all_keys(), *_keys_of_parts(catalogue, chosen, key)]
    found = next((each for each in keys if each.name == key), None)
    if found is None:
        return []
    words = [*found.choices, *(["true", "false"] if found.type.startswith("true or false") else [])]
    if key == "agent.python":
        words += [
            item.value for item in complete_environment(click.Context(click.Command("")), click.Option(["-x"]), "")
        ]
    return [*_items(words), *(paths_like(value, "") if "path" in found.type else [])]


def _models(catalogue: Catalogue, given: Iterable[str], incomplete: str) -> Items:
    """Bundled models, the runs in the folder of runs with their checkpoints, and other folders."""
    from agentrl.runs.folder import run_names

    bundled = next(part for part in catalogue.parts() if part.key == "model")
    settings = dict(argument.split("=", 1) for argument in given if "=" in argument)
    folder = Path(settings.get(_RUNS, "runs"))
    runs = [str(folder / name) for name in run_names(folder)]
    of_run = next((run for run in runs if incomplete.startswith(f"{run}/")), None)
    saved = [] if of_run is None else [f"{each}" for each in sorted(Path(of_run).glob("checkpoints/step-*"))]
    folders = [] if saved else [each for each in paths_like(incomplete, None) if each.value.rstrip("/") not in runs]
    return [*_items(catalogue.names(bundled)), *_items(runs), *_items(saved), *folders]


def paths_like(incomplete: str, ending: str | None) -> Items:
    """Files with an ending, and folders; ``None`` for folders alone. Hidden ones are asked for by their dot."""
    folder, _, begun = incomplete.rpartition("/")
    found: Items = []
    try:
        entries = sorted(
            os.scandir(os.path.expanduser(f"{folder}/") if "/" in incomplete else "."), key=lambda e: e.name
        )
    except OSError:
        return []
    for entry in entries:
        if not entry.name.startswith(begun) or (entry.name.startswith(".") and not begun.startswith(".")):
            continue
        path = f"{folder}/{entry.name}" if "/" in incomplete else entry.name
        if entry.is_dir():
            found.append(CompletionItem(f"{path}/"))
        elif ending is not None and entry.name.endswith(ending):
            found.append(CompletionItem(path))
    return found


def _first(help_: str) -> str:
    return help_.partition(". ")[0].rstrip(".")


def _items(values: Iterable[str]) -> Items:
    return [CompletionItem(value) for value in values]


def _starting(items: Iterable[CompletionItem], incomplete: str) -> Items:
    unique = {item.value: item for item in items}
    return [item for value, item in unique.items() if value.startswith(incomplete)]


_LINE = "COMP_LINE"
_BREAKS = "COMP_WORDBREAKS"


class _Shell(ShellComplete):
    def get_completion_args(self) -> tuple[list[str], str]:
        """The arguments before the cursor, and what has been written of the one at it."""
        line = os.environ[_LINE]
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1].isspace() else words.pop()
        names = [Path(word).name for word in words]
        return words[names.index(self.prog_name) + 1 :] if self.prog_name in names else words[1:], incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """The candidates, with the paths that click leaves to the shell."""
        found: list[CompletionItem] = []
        for item in super().get_completions(args, incomplete):
            found += (
                paths_like(item.value, None if item.type == "dir" else "") if item.type in ("dir", "file") else [item]
            )
        return found

    def complete(self) -> str:
        """The candidates, one a line. An error would be written across what the user is writing, so it is nothing."""
        try:
            return super().complete()
        except Exception:
            if os.environ.get(DEBUG):
                raise
            return ""

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.value}\t{item.help}" if item.help else str(item.value)


class _Bash(_Shell):
    name = "bash"
    source_template: ClassVar[str] = """\
%(complete_func)s() {
    local IFS=$'\\n' candidate
    for candidate in $(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
            %(complete_var)s=bash_complete "$1"); do
        COMPREPLY+=("$candidate")
        [[ $candidate == *[=/.] ]] && compopt -o nospace
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def format_completion(self, item: CompletionItem) -> str:
        """The candidate without what stands before the last character at which bash takes words apart."""
        value = str(item.value)
        _, incomplete = self.get_completion_args()
        breaks = set(os.environ.get(_BREAKS, "")) - set(" \t\n\"'")
        begun = max((incomplete.rfind(mark) for mark in breaks), default=-1) + 1
        return value[begun:]


class _Zsh(_Shell):
    name = "zsh"
    source_template: ClassVar[str] = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local line value
    local -a whole whole_told open open_told
    for line in "${(@f)$(env COMP_LINE="${(pj:\\n:)words[1,CURRENT-1]}"$'\\n'"$PREFIX" \\
            %(complete_var)s=zsh_complete $words[1])}"; do
        value="${line%%%%$'\\t'*}"
        [[ -z $value ]] && continue
        if [[ $value == *[=/.] ]]; then
            open+=("$value"); open_told+=("${line/$'\\t'/  -- }")
        else
            whole+=("$value"); whole_told+=("${line/$'\\t'/  -- }")
        fi
    done
    compadd -V agentrl -l -d whole_told -a whole
    compadd -V agentrl -l -d open_told -S '' -a open
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class _Fish(_Shell):
    name = "fish"
    source_template: ClassVar[str] = """\
function %(complete_func)s
    env COMP_LINE=(commandline -cp | string collect) %(complete_var)s=fish_complete (commandline -po)[1]
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


def add_shells() -> None:
    """Have click use these scripts in the place of its own."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)
