"""``agentrl serve``: serve a model to agents that run elsewhere."""

from __future__ import annotations

import json
import math
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.boundary import INTERRUPTED
from agentrl.cli.completion import complete_keys
from agentrl.cli.root import App
from agentrl.cli.settings import split_arguments
from agentrl.environ import ADMIN_KEY

if TYPE_CHECKING:
    from agentrl.reporting.contract import Reporter
    from agentrl.training.sessions import Ready

__all__ = ["serve"]

_STOPPING = "stopping: the sessions that are open are stored (Ctrl-C again to stop at once)"
_DEFAULTS = {
    "host": "127.0.0.1",
    "port": 8000,
    "max_sessions": 1000,
    "max_waiting": 256,
    "idle": 3600,
    "max_body": 32,
    "max_header": 64,
    "header_timeout": 30,
    "body_timeout": 120,
}
"""Those of the section, which pydantic would have to be imported for."""
_MOST = 1e9
"""Most seconds, and most MiB: decades, and more than any machine has."""

_EPILOG = """\b
Examples:
  agentrl serve --model tiny
  agentrl serve --model runs/quickstart --port 0 rollout.max_tokens=1024
  AGENTRL_ADMIN_KEY=… agentrl serve --model Qwen/Qwen3-0.6B --host 0.0.0.0

\b
Open a session, use any client at its base_url with its api_key, reward and close it:
  curl -X POST http://127.0.0.1:8000/v1/sessions -H "Authorization: Bearer ADMIN_KEY"
  curl http://127.0.0.1:8000/v1/sessions/current/rewards -H "Authorization: Bearer API_KEY" -d '{"reward": 1}'
  curl -X POST http://127.0.0.1:8000/v1/sessions/current/close -H "Authorization: Bearer API_KEY"
GET /openapi.json describes everything that is served.

\b
Exit codes: 0 stopped by SIGTERM, 1 it failed, 2 usage, 3 plugin or environment, 130 stopped by Ctrl-C.
"""


class _Amount(click.FloatRange):
    """Seconds or MiB."""

    def __init__(self) -> None:
        super().__init__(0, _MOST, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a number above 0. What is no number, ``nan`` among it, is a usage error."""
        amount = super().convert(value, param, ctx)
        if math.isnan(amount):
            self.fail(f"{value} is not a number.", param, ctx)
        return amount


def _help(text: str, key: str) -> str:
    """The help of an option that has the default of its key, in words: the key itself may be set elsewhere."""
    return f"{text}  [default: serve.{key}, {_DEFAULTS[key]}]"


@click.command(epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_keys)
@click.option("--model", metavar="NAME|FOLDER", help="The model: a bundled name, a folder, a run or a Hugging Face id.")
@click.option("--backend", metavar="NAME", help="What samples it; the same as inference.backend=NAME.")
@click.option("--config", "-c", "file", type=click.Path(path_type=Path), help="A YAML file of settings.")
@click.option("--host", metavar="ADDRESS", help=_help("The address to serve at.", "host"))
@click.option("--port", type=click.IntRange(0, 65535), help=_help("The port. 0 takes a free one.", "port"))
@click.option("--url", metavar="URL", help="Where clients reach it, if not at host and port, such as behind a proxy.")
@click.option(
    "--admin-key",
    metavar="KEY",
    help=f"Opens and lists sessions. Better set as {ADMIN_KEY}, which other users of the machine do not see. Without "
    "one, a key is made and printed once; other addresses than this machine's own need one.",
)
@click.option(
    "--max-sessions",
    type=click.IntRange(1),
    metavar="N",
    help=_help("Most open sessions; a further one is a 429.", "max_sessions"),
)
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    metavar="N",
    help=_help("Most calls that wait for the model; a further one is a 429.", "max_waiting"),
)
@click.option(
    "--idle", type=_Amount(), metavar="SECONDS", help=_help("How long a session is kept that nobody uses.", "idle")
)
@click.option(
    "--max-body",
    type=_Amount(),
    metavar="MIB",
    help=_help("Largest body of a request; a larger one is a 413.", "max_body"),
)
@click.option(
    "--max-header",
    type=click.IntRange(1),
    metavar="KIB",
    help=_help("Largest header of a request; a larger one is a 431.", "max_header"),
)
@click.option(
    "--header-timeout",
    type=_Amount(),
    metavar="SECONDS",
    help=_help("How long a client may take to send a header; a slower one is a 408.", "header_timeout"),
)
@click.option(
    "--body-timeout",
    type=_Amount(),
    metavar="SECONDS",
    help=_help("How long a client may take to send a body; a slower one is a 408.", "body_timeout"),
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON once it serves, and one when it has ended.")
@click.pass_obj
def serve(
    app: App,
    /,
    arguments: tuple[str, ...],
    model: str | None,
    backend: str | None,
    file: Path | None,
    admin_key: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Serve a model to agents that run elsewhere, in sessions that record every token.

    Whoever has the admin key opens a session over HTTP and is given a base URL and an API key, for the clients of any
    protocol that `agentrl list-dialects` shows. Rewards are posted to a call or to the episode. A session ends when it
    is closed, or when nobody has used it for --idle seconds, and is kept as an episode in a run folder.

    The options of the service are those of the section `serve` of a configuration, and win over it. To have the model
    learn from the sessions, run `agentrl train online`.
    """
    from agentrl.cli.eval import named
    from agentrl.config import resolve_config, unused_by_serving
    from agentrl.errors import ConfigError
    from agentrl.reporting.reporter import default_reporter
    from agentrl.training.backends import is_chat
    from agentrl.training.interrupts import Interrupts
    from agentrl.training.service import serve_sessions
    from agentrl.training.sessions import ServiceOptions

    given, settings = split_arguments(arguments, "model")
    if given is not None and model is not None:
        raise ConfigError(f"the model is named twice, as {given!r} and as {model!r}", fix="leave one of them out")
    if backend is not None:
        settings = (f"inference.backend.name={backend}", *settings)
    of_section = [f"serve.{name}={value}" for name, value in options.items() if value is not None]
    resolved = resolve_config(file, *settings, *of_section, model=model or given)
    resolved = named(resolved, app.plugins, do="serve", say="--model MODEL")
    service = ServiceOptions.of(resolved.config.serve, admin_key)
    reporter = default_reporter(tracebacks=app.debug)
    try:
        for key in unused_by_serving(resolved.provenance, endpoint=is_chat(resolved.config, app.plugins)):
            reporter.warning(str(key))
        folders: list[Path] = []
        with Interrupts(partial(reporter.note, _STOPPING), reporter.close) as interrupts:
            ready = partial(_ready, reporter, as_json, folders)
            summary = serve_sessions(resolved.config, app.plugins, service, reporter, ready, interrupts)
    finally:
        reporter.close()
    if as_json:
        click.echo(json.dumps(summary.to_json()))
    elif summary.episodes:
        click.echo(f"{summary.episodes} episodes, {summary.failed} failed, {summary.tokens} tokens: {folders[0]}")
    return 0 if interrupts.first in (None, signal.SIGTERM) else INTERRUPTED


def _ready(reporter: Reporter, as_json: bool, folders: list[Path], ready: Ready) -> None:
    """Say where it serves; a key that was made is printed here, and nowhere else."""
    folders.append(ready.folder)
    reporter.note(f"{ready.model} is served at {ready.url} (Ctrl-C stops it); episodes are kept in {ready.folder}")
    if ready.admin_key is not None:
        click.echo(f"admin key, shown once: {ready.admin_key}", err=True)
    if as_json:
        click.echo(json.dumps({"url": ready.url, "model": ready.model, "run": str(ready.folder)}))
