"""``agentrl view``: a web page that shows runs, also while they go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.completion import complete_run
from agentrl.cli.selection import chosen_filters, episode_filters, sort_options
from agentrl.environ import VIEW_TOKEN

if TYPE_CHECKING:
    from agentrl.runs.contract import EpisodeFilter, SortKey
    from agentrl.view.library import Library

__all__ = ["NEEDED", "view"]

NEEDED = ("plotly", "jinja2", "latex2mathml", "markdown_it", "markupsafe", "starlette", "uvicorn")
"""The packages of the extra ``view``, as they are imported."""
_AUTO = "auto"
_NEWEST = "newest"

_EPILOG = """\b
Examples:
  agentrl view
  agentrl view quickstart --open
  agentrl view runs/a runs/b --port 8000
  agentrl view --host 0.0.0.0 --token auto
  agentrl view quickstart --export report.html
  agentrl view quickstart --export failures.html --outcome failed --limit 10

\b
From another machine, without opening a port to others:
  ssh -L 8000:127.0.0.1:8000 MACHINE agentrl view --port 8000

\b
Exit codes: 0 ended by Ctrl-C or SIGTERM, 2 usage, 3 plugin or environment.
"""


@click.command(epilog=_EPILOG)
@click.argument("runs", nargs=-1, metavar="[RUN|FOLDER]...", shell_complete=complete_run)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port. By default a free one is taken.")
@click.option(
    "--token",
    metavar="TOKEN|auto",
    help="What a browser has to know, by ?token=… in the address; `auto` makes one. Addresses that others can reach "
    f"need it. Better set as {VIEW_TOKEN}, which other users of the machine do not see.",
)
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the address, or the file, as a line of JSON.")
@click.option(
    "--export",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write one HTML file to send, with the curves of RUN and some of its episodes, instead of serving a page.",
)
@click.option(
    "--episodes",
    "keys",
    multiple=True,
    metavar="KEY[,KEY]...",
    help="With --export: these episodes. By default the best, the worst and the most surprising, or those of a filter.",
)
@episode_filters
@sort_options
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="With --export and a filter: at most so many.",
)
@click.pass_context
def view(
    context: click.Context,
    /,
    runs: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    opens: bool,
    as_json: bool,
    file: Path | None,
    keys: tuple[str, ...],
    sort: SortKey,
    descending: bool,
    limit: int,
    **options: Any,
) -> None:
    """Show runs in a web page: how they learn, and what the agent did, token by token.

    RUN is a run folder, a name in `run.dir`, or `newest`; FOLDER is a folder of runs, by default `run.dir`. The page
    follows runs that go on, and shows those that begin later in a folder. It is served to this machine alone, changes
    nothing, and loads nothing from elsewhere.

    With --export no page is served: the curves of one RUN and some of its episodes become one file, which loads nothing
    either. The filters choose the episodes of that file.
    """
    from agentrl.extras import require

    for module in NEEDED:
        require(module, "view")
    filters = chosen_filters(options)
    _check_used(
        context, is_export=file is not None, is_named=bool(keys), is_chosen=bool(filters) or sort != "committed"
    )
    if file is not None:
        _export(runs, file, keys, filters, sort, descending, limit, as_json=as_json)
        return
    from agentrl.listening import listen
    from agentrl.view.library import Library
    from agentrl.view.security import is_loopback, new_token
    from agentrl.view.server import address_of, check_exposure, serve

    # An empty --token is that of a variable that is not set: without one, others would read what it was to guard.
    given = (os.environ.get(VIEW_TOKEN) or None) if token is None else token
    secret = new_token() if given == _AUTO else given
    check_exposure(host, secret)
    library = Library(_places(runs))
    here = listen(
        host,
        port,
        what="the page",
        other_port="leave --port out for a free one, or take another",
        other_host="take another --host or --port",
    )
    with here as listener:
        address = f"{address_of(host, listener)}{_path(library)}"
        shown = f"{address}?token={secret}" if given == _AUTO else address
        _tell(shown, library, as_json, is_open=not is_loopback(host))
        if opens:
            _open(f"{address}?token={secret}" if secret else address)
        from agentrl.view.app import view_app
        from agentrl.view.security import own_hosts

        cookie = f"agentrl-view-{listener.getsockname()[1]}"
        serve(view_app(library, is_own=own_hosts(host), token=secret, cookie=cookie), listener)


def _check_used(context: click.Context, *, is_export: bool, is_named: bool, is_chosen: bool) -> None:
    """Raise ``ConfigError`` for an option that was given and would change nothing beside the others.

    ``is_named`` tells whether the episodes of a file are named by their keys, and ``is_chosen`` whether a filter or an
    order chooses them.
    """
    from agentrl.errors import ConfigError

    given = [name for name in context.params if _is_given(context, name)]
    serving = {"host": "host", "port": "port", "token": "token", "opens": "open"}
    for name in given:
        if name in serving and is_export:
            raise ConfigError(
                f"--{serving[name]} has no effect beside --export, which serves no page", fix="leave it out"
            )
        if name in ("runs", "file", "as_json", *serving):
            continue
        option = "episodes" if name == "keys" else name.replace("_", "-")
        if not is_export:
            fix = "the page of a run's episodes has filters of its own"
            raise ConfigError(f"--{option} has no effect without --export", fix=fix)
        if is_named and name != "keys":
            raise ConfigError(
                f"--{option} has no effect beside --episodes, which names the episodes", fix="leave one of them out"
            )
        if name in ("limit", "descending") and not is_chosen:
            raise ConfigError(
                f"--{option} has no effect without a filter or --sort", fix="add one of them, or leave it out"
            )


def _is_given(context: click.Context, name: str) -> bool:
    """Whether the user gave the option, also where its value is the default."""
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _export(
    runs: Sequence[str],
    file: Path,
    keys: Sequence[str],
    filters: EpisodeFilter,
    sort: SortKey,
    descending: bool,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """Write the report of a run."""
    from agentrl.cli.selection import chosen_run, nothing_found
    from agentrl.errors import ConfigError, RunError
    from agentrl.runs.folder import write_atomically
    from agentrl.view.report import chosen_by, interesting, named, report

    if len(runs) > 1:
        raise ConfigError(f"--export writes the report of one run, not of {', '.join(runs)}", fix="name one of them")
    if file.exists():
        raise ConfigError(f"the file {file} exists already", fix="name another one, or remove it")
    run = chosen_run(runs[0] if runs else None)
    is_chosen = bool(filters) or sort != "committed"
    if keys:
        wanted = [key.strip() for each in keys for key in each.split(",") if key.strip()]
        if not wanted:
            raise ConfigError(
                f"--episodes {','.join(keys)!r} names no episode", fix="write it as --episodes train-12-3-0"
            )
        chapters = named(run, wanted)
    elif is_chosen:
        chapters = chosen_by(run, filters, sort, descending, limit)
    else:
        chapters = interesting(run)
    if not chapters:
        click.echo(nothing_found(run, filters), err=True)
    text = report(run, chapters)
    try:
        write_atomically(file, text)
    except OSError as error:
        raise RunError(
            f"cannot write {file}: {error.strerror or error}", fix="name a file in a folder that can be written to"
        ) from error
    count = sum(len(chapter.rows) for chapter in chapters)
    if as_json:
        import json

        click.echo(
            json.dumps({"file": str(file), "run": str(run.path), "episodes": count, "bytes": len(text.encode())})
        )
    else:
        click.echo(f"{file}: {run.name} with {count} episode{'' if count == 1 else 's'}, {len(text) / 1e6:.1f} MB")


def _places(runs: Sequence[str]) -> list[Path]:
    """The run folders and folders of runs that the arguments mean. Raises ``ConfigError`` for what is neither."""
    from agentrl.config import load_config
    from agentrl.errors import ConfigError, near_matches
    from agentrl.runs.folder import newest_run, run_names

    folder = load_config().run.dir.expanduser()
    places = []
    for each in runs:
        path = Path(each.removeprefix("run.dir=")).expanduser()
        if not each:
            raise ConfigError("an empty text names no run", fix="name a run or a folder, or leave it out")
        if (path / "config.yaml").is_file():
            places.append(path)
        elif (folder / path / "config.yaml").is_file():
            places.append(folder / path)
        elif each == _NEWEST:
            places.append(newest_run(folder))
        elif path.is_dir():
            places.append(path)
        else:
            near = near_matches(path.name, [*run_names(folder), *run_names(path.parent)])
            raise ConfigError(f"there is no run {each!r}, neither in {folder} nor as a folder", fix=near)
    return places or [folder]


def _path(library: Library) -> str:
    """The page to begin with: that of the run where one was named, else the list."""
    from urllib.parse import quote

    (place, *others), names = library.places, library.names()
    is_run = not others and (place / "config.yaml").is_file()
    return f"/runs/{quote(names[0], safe='')}" if is_run and names else "/"


def _tell(address: str, library: Library, as_json: bool, *, is_open: bool) -> None:
    count = len(library.names())
    places = ", ".join(map(str, library.places))
    if as_json:
        import json

        click.echo(json.dumps({"url": address, "runs": count}))
    else:
        click.echo(address)
    click.echo(f"{count} {'run' if count == 1 else 'runs'} of {places} (Ctrl-C ends it)", err=True)
    if is_open:
        click.echo("others on the network can read along: what is sent is not encrypted (ssh -L is)", err=True)


def _open(address: str) -> None:
    import threading
    import webbrowser

    # A browser that is started may keep its caller, and waits for the answers of this process.
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
