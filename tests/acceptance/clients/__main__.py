"""Play a tool loop through real clients, each in an environment of its own, and look at what was recorded.

    python -m tests.acceptance.clients [--short] [--record FOLDER] [NAME ...]

A name is the beginning of a client's name, in any case; by default all run. Environments are made once, below
``.tox/clients``. Prints a line a client; the exit code is 1 where one failed. A client that cannot be installed here,
such as a command of Node where there is no npm, is told of and fails nothing. ``--record`` keeps the requests that a
client sent, for tests that replay them without it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.acceptance.clients.table import CLIENTS, SHORT, TURNS, Client

from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.gateway.contract import Exchange, Reply
from agentrl.gateway.gateway import registered_dialects, split_path
from agentrl.inference.contract import Capabilities
from agentrl.plugins import Plugins
from agentrl.testing import ScriptedBackend
from agentrl.worker.variables import endpoint_variables

ENVIRONMENTS = Path(__file__).parents[3] / ".tox" / "clients"
DRIVERS = Path(__file__).with_name("drivers")
CONTEXT = 2**20
INSTALL_S = 900
RUN_S = 240
LONGEST = 500
HEADERS = ("anthropic-version", "anthropic-beta", "x-stainless-retry-count", "user-agent", "accept")


@dataclass(frozen=True)
class Outcome:
    """How the loop of one client went."""

    client: Client
    fault: str | None
    seconds: float
    skipped: str | None = None

    def line(self) -> str:
        word = f"skipped: {self.skipped}" if self.skipped else f"FAILED: {self.fault}" if self.fault else "ok"
        return f"{self.client.name:36} {self.seconds:8.1f}  {word}"


def play(client: Client, record: Path | None = None) -> Outcome:
    """Install the client, run its loop, judge what the gateway recorded, and keep the requests in ``record``."""
    try:
        runner = _installed(client)
    except (subprocess.SubprocessError, OSError) as error:
        return Outcome(client, None, 0.0, f"cannot be installed here: {error}")
    began = time.monotonic()
    backend = ScriptedBackend(client.script(), context_length=CONTEXT)
    sampling = Capabilities(1, 1).sampling | {"grammar"}  # The script is what a grammar would have it be.
    completer = EngineCompleter(backend, Capabilities(CONTEXT, 8, sampling=sampling), backend.renderer)
    gateway = Gateway(completer, registered_dialects(Plugins(), print))
    gateway.start()
    session = gateway.open_session(SessionSettings(training=True))
    requests = _watched(gateway)
    try:
        fault = _run(client, runner, session) or judged(session)
    finally:
        session.close()
        gateway.stop()
    if record is not None and fault is None:
        _keep(record, client, requests)
    return Outcome(client, fault, time.monotonic() - began)


def _watched(gateway: Gateway) -> list[Exchange]:
    """Every request that reaches the gateway from now on."""
    seen: list[Exchange] = []
    answer = gateway.answer

    async def watched(exchange: Exchange) -> Reply:
        seen.append(exchange)
        return await answer(exchange)

    gateway.answer = watched  # type: ignore[method-assign]
    return seen


def _keep(folder: Path, client: Client, requests: list[Exchange]) -> None:
    """Write what a client sent to the model, and the model's part, as JSON, a request a line.

    Instructions of the client's own are left out: they are its makers' text.
    """
    kept = [
        {
            "path": split_path(request.path)[1],
            "headers": {name: request.headers[name] for name in HEADERS if name in request.headers},
            "body": _without_instructions(json.loads(request.body)),
        }
        for request in requests
        if request.method == "POST"
    ]
    name = "-".join("".join(char if char.isalnum() else " " for char in client.name.lower()).split())
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"client": client.name, "script": client.script()})[:-1]
    lines = ",\n".join(map(json.dumps, kept))
    (folder / f"{name}.json").write_text(f'{head}, "requests": [\n{lines}\n]}}\n')


def _without_instructions(value: Any) -> Any:
    """``value`` with texts that are longer than anything the drivers say cut to a remark."""
    if isinstance(value, dict):
        return {key: _without_instructions(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_instructions(each) for each in value]
    return "(instructions of the client)" if isinstance(value, str) and len(value) > LONGEST else value


def _installed(client: Client) -> list[str]:
    """Make the client's environment if it is not there; the command that runs its driver."""
    folder = ENVIRONMENTS / "-".join("".join(filter(str.isalnum, each)) for each in client.requirements)
    done = folder / "installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if client.node:
            folder.mkdir(parents=True)
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *client.requirements]
        else:
            venv.create(folder, with_pip=True)
            command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--no-compile"]
            command += ["--disable-pip-version-check", *client.requirements]
        subprocess.run(command, check=True, timeout=INSTALL_S, stdout=subprocess.DEVNULL)
        done.touch()
    if client.node:
        (binary,) = sorted((folder / "node_modules/.bin").glob("c*"))[:1]
        return [sys.executable, str(DRIVERS / f"{client.driver}.py"), str(binary)]
    return [str(folder / "bin/python"), str(DRIVERS / f"{client.driver}.py"), *client.arguments]


def _run(client: Client, command: list[str], session: Session) -> str | None:
    """Run the driver; why it failed, if it did."""
    variables = {
        **os.environ,
        **endpoint_variables(session.base_url, session.api_key),
        "NO_PROXY": "127.0.0.1",
        "PYTHONWARNINGS": "ignore",
    }
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=RUN_S, check=False)
    except subprocess.TimeoutExpired:
        return f"did not end within {RUN_S} s, after {len(session.calls)} calls; refused: {_refused(session)}"
    if done.returncode:
        return f"exit code {done.returncode}: {(done.stderr or done.stdout)[-1500:]}; refused: {_refused(session)}"
    return None


def _refused(session: Session) -> str:
    return "; ".join(str(error) for error in session.refusals[-3:]) or "nothing"


def judged(session: Session) -> str | None:
    """What is wrong with the record of a loop of one chain, if anything."""
    loop = [call for call in session.calls if call.message.get("tool_calls") or call.parent]
    forks = [call.fork_reason for call in loop if call.fork_reason]
    parents = [call.parent for call in loop]
    if len(loop) != TURNS + 1:
        return f"{len(loop)} calls in the loop, and not {TURNS + 1}; refused: {_refused(session)}"
    if forks:
        return f"forked: {', '.join(forks)}"
    if parents != [None, *(call.id for call in loop[:-1])]:
        return "the calls are no chain"
    if not all(call.delivered for call in loop[:-1]):
        return "a call that was continued is not delivered"
    own = {call.id for call in loop}
    spans = [span for span in session.tree.spans if span.sampled and span.sampled.call in own]
    return None if len(spans) == len(loop) else f"{len(spans)} sampled spans for {len(loop)} calls"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="keep the requests of each client there")
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(map(repr, SHORT))}")
    options = parser.parse_args()
    names = [name.lower() for name in (SHORT if options.short else options.names)]
    chosen = [each for each in CLIENTS if not names or any(each.name.lower().startswith(name) for name in names)]
    outcomes = []
    for client in chosen:
        outcomes.append(play(client, options.record))
        print(outcomes[-1].line(), flush=True)
    failed = sum(outcome.fault is not None for outcome in outcomes)
    print(f"\n{len(outcomes)} clients, {failed} failed, {sum(bool(each.skipped) for each in outcomes)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
