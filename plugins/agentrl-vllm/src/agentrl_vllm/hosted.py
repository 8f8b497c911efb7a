"""Servers on other machines: each is started and supervised by a host that the run's scheduler has placed there.

A host needs no folder of this machine. It is given the model's small files, and files of weights that have the right
sizes and no numbers in them, and the server's weights are then sent to it as every update is. Where nothing lends
weights, as at an evaluation, and where an adapter is trained over a base model, it needs to see the model's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl import AgentRLError, BackendError, ConfigError, finish_in_thread, run_in_thread
from agentrl.hosting.contract import Host, Hosts, HostSpec
from agentrl.inference.contract import AdapterContext
from agentrl_vllm.client import one_line
from agentrl_vllm.command import ServingCommand, server_environment
from agentrl_vllm.folders import own_folder
from agentrl_vllm.guard import KEY
from agentrl_vllm.installation import find_python, inspect_python
from agentrl_vllm.server import Server
from agentrl_vllm.settings import VllmSettings

__all__ = ["HostedServer", "ModelFiles", "ServerHost", "read_model"]

_PREFIX = "agentrl-vllm-host-"
_WEIGHTS = ".safetensors"
_SMALL = 64 * 2**20
"""Bytes of the largest file of a model that goes to another machine whole: tokenizers have some tens of millions."""
_KEPT = 16
"""Folders, of the newest adapters, that are kept on another machine: the server may read those that it has loaded."""
_LOOK_S = 1.0
_STOP_S = 15.0
_LAST_WORDS_S = 5.0
"""Seconds that a host has for the rest of its server's log when it is stopped."""
_ANSWER_S = 30.0
"""Seconds that a host may be silent: one whose machine has stopped answering is lost."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What another machine needs of a model folder to start a server that is given its weights later."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    """By name, the small files whole, and of files of weights the header, which tells names and shapes."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """By name, the bytes that each file of weights has."""


def read_model(folder: Path) -> ModelFiles:
    """Returns what is needed of the model in ``folder``. Raises ``BackendError`` where it cannot be read."""
    files: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    try:
        for path in sorted(each for each in folder.iterdir() if each.is_file()):
            if path.suffix == _WEIGHTS:
                with path.open("rb") as opened:
                    length = opened.read(8)
                    files[path.name] = length + opened.read(int.from_bytes(length, "little"))
                sizes[path.name] = path.stat().st_size
            elif path.stat().st_size <= _SMALL:
                files[path.name] = path.read_bytes()
    except OSError as error:
        raise BackendError(f"the model in {folder} cannot be read: {error.strerror or error}") from error
    return ModelFiles(files, sizes)


def _write_model(files: ModelFiles, folder: Path) -> None:
    for name, content in files.files.items():
        with (folder / Path(name).name).open("wb") as written:
            written.write(content)
            if name in files.sizes:
                written.truncate(files.sizes[name])  # The rest takes no room: it reads as zeros.


class ServerHost:
    """The object of a host: one server on the host's machine."""

    def __init__(self, *, name: str, number: int, settings: Mapping[str, Any], sequences: int) -> None:
        """``settings`` are those of the backend; ``name`` is what the server is called in messages."""
        self._name = name
        self._number = number
        self._settings = VllmSettings.model_validate(settings)
        self._sequences = sequences
        self._folder, self._held = own_folder(Path(tempfile.gettempdir()), _PREFIX)
        self._log = self._folder / "server.log"
        self._said: list[str] = []
        self._server: Server | None = None

    async def start(
        self, *, model: ModelFiles | str, address: str, key: str, adapter: AdapterContext | None, seconds: float
    ) -> str:
        """Start the server, which listens at ``address`` and asks for ``key``, and return its URL once it answers.

        ``model`` is what ``read_model`` returned, or the path of a folder that this machine sees. Raises
        ``PluginError`` where there is no vLLM here, ``ConfigError`` for a folder that is not seen here, and
        ``BackendError`` where the server does not start.
        """
        if isinstance(model, str):
            folder = Path(model)
            if not (folder / "config.json").is_file():
                raise ConfigError(
                    f"{self._name} is to run on {socket.gethostname()}, which does not see the model folder {model}",
                    fix="keep it in a folder that every machine has under the same path",
                )
        else:
            folder = self._folder / "model"
            folder.mkdir(exist_ok=True)
            await run_in_thread(_write_model, model, folder)
        python = find_python(self._settings.python)
        environ = server_environment(self._settings.env, os.environ, python)
        installation = await inspect_python(python, environ)
        command = ServingCommand(
            installation,
            self._settings,
            {**environ, KEY: key},
            self._number,
            sequences=self._sequences,
            adapter=adapter,
            address=address,
            is_placed=True,
        )
        self._server = Server(
            lambda port, scratch: command.build(folder, port, scratch),
            name=self._name,
            log=self._log,
            shared=self._folder,
            address=address,
            key=key,
            start_timeout=seconds,
            say=self._said.append,
        )
        await self._server.start()
        return self._server.url

    async def look(self, since: int) -> dict[str, Any]:
        """Returns how the server is: ``alive``, its ``ending`` and ``last`` lines, what was ``said`` of its start, and
        what it has printed from the byte ``since`` on, as ``text``."""
        said, self._said = self._said, []
        server = self._server
        try:
            with self._log.open("rb") as log:
                log.seek(since)
                text = log.read(1 << 20)
        except OSError:
            text = b""
        return {
            "alive": server is not None and server.alive,
            "ending": "was not started" if server is None else server.ending,
            "last": "" if server is None else server.last_lines(),
            "said": said,
            "text": text,
        }

    async def place(self, name: str, files: Mapping[str, bytes]) -> str:
        """Write ``files`` into a folder called ``name`` and return its path."""
        folder = self._folder / Path(name).name
        folder.mkdir(exist_ok=True)
        for each, content in files.items():
            (folder / Path(each).name).write_bytes(content)
        return str(folder)

    async def forget(self, names: list[str]) -> None:
        """Remove the folders with these names."""
        for name in names:
            shutil.rmtree(self._folder / Path(name).name, ignore_errors=True)

    def close(self) -> None:
        """End the server, and remove everything of it."""
        if self._server is not None:
            self._server.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._held.close()


class HostedServer:
    """A server on another machine, as a replica uses it: a ``ReplicaServer``."""

    ours = True

    def __init__(
        self,
        hosts: Hosts,
        settings: VllmSettings,
        *,
        name: str,
        number: int,
        sequences: int,
        model: Callable[[], ModelFiles | str],
        adapter: AdapterContext | None,
        key: str,
        log: Path,
        gpus: int,
        start_timeout: float,
        say: Callable[[str], None],
    ) -> None:
        """``model`` returns what ``ServerHost.start`` takes; ``key`` is what the server is to ask for.

        It is placed where ``gpus`` GPUs are free together.
        """
        self.name = name
        self.url = ""
        """Its base URL; set when it starts."""
        self._hosts = hosts
        self._settings = settings
        self._number = number
        self._sequences = sequences
        self._model = model
        self._adapter = adapter
        self._key = key
        self._log = log
        self._gpus = gpus
        self._start_timeout = start_timeout
        self._say = say
        self._host: Host | None = None
        self._alive = False
        self._ending = "was not started"
        self._last = ""
        self._read = 0
        self._placed: list[str] = []
        """Names of the folders that were sent there."""
        self._watching: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as its host has told."""
        return self._alive

    @property
    def ending(self) -> str:
        """How it ended, as the end of a sentence."""
        return self._ending

    def last_lines(self) -> str:
        """Returns its last lines of output, joined to one; empty where there are none."""
        return self._last

    async def start(self) -> None:
        """Have a host placed, and start the server there.

        Raises ``BackendError`` where the server does not start and where its host or its machine is lost, and what
        ``Hosts.start`` raises where there is no room. No host is left then.
        """
        deadline = time.monotonic() + self._start_timeout
        settings = self._settings.model_dump(mode="json", exclude_unset=True)
        arguments = {"name": self.name, "number": self._number, "settings": settings, "sequences": self._sequences}
        spec = HostSpec(
            # A host that is lost may be known by its name for a while.
            name=f"{self.name} ({secrets.token_hex(2)})",
            target="agentrl_vllm.hosted:ServerHost",
            arguments=arguments,
            gpus=float(self._gpus),
        )
        self._say(f"{self.name} is being placed")
        self._host = await self._place(spec)
        try:
            await self._start(self._host, deadline)
        except BaseException:
            await asyncio.shield(self.stop())
            raise
        self._say(f"{self.name} is ready at {self.url} on {self._host.node}")

    async def stop(self) -> None:
        """End it and its host. Safe to call twice."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        host, self._host = self._host, None
        if host is not None:
            await self._look(host, _LAST_WORDS_S, quietly=True)
            await run_in_thread(host.stop, _STOP_S)
        self._alive = False

    async def place(self, folder: Path) -> str:
        """Returns the path under which the server sees the small files of ``folder``, which are sent to its machine."""
        if self._host is None:
            raise BackendError(f"{self.name} was stopped")
        files = await run_in_thread(lambda: {each.name: each.read_bytes() for each in folder.iterdir()})
        async with asyncio.timeout(_ANSWER_S):
            path: str = await asyncio.wrap_future(self._host.ask("place", folder.name, files))
            self._placed.append(folder.name)
            if len(self._placed) > _KEPT:
                await asyncio.wrap_future(self._host.ask("forget", self._placed[:-_KEPT]))
                del self._placed[:-_KEPT]
        return path

    async def _place(self, spec: HostSpec) -> Host:
        """Have a host placed. An interrupt ends the wait for it at once, and leaves none behind."""
        given_up = threading.Event()
        starting = functools.partial(self._hosts.start, [spec], patience=self._start_timeout, given_up=given_up)
        placing = asyncio.ensure_future(finish_in_thread(starting))
        try:
            await asyncio.wait({placing})
        except asyncio.CancelledError:
            given_up.set()
            while not placing.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({placing})
            for host in () if placing.exception() else placing.result():
                await asyncio.shield(run_in_thread(host.stop, 0.0))
            raise
        (host,) = placing.result()
        return host

    async def _start(self, host: Host, deadline: float) -> None:
        model = await run_in_thread(self._model)
        left = max(1.0, deadline - time.monotonic())
        starting = host.ask(
            "start", model=model, address=host.address, key=self._key, adapter=self._adapter, seconds=left
        )
        begun = asyncio.wrap_future(starting)
        try:
            while not begun.done():
                await asyncio.wait([begun], timeout=_LOOK_S)
                await self._look(host, left)
            self.url = await begun
        except AgentRLError as error:
            if isinstance(error, BackendError):
                raise BackendError(f"on {host.node}: {error.message}", fix=error.fix) from error
            raise
        finally:
            begun.cancel()
        self._alive, self._ending = True, "is running"
        self._watching = asyncio.get_running_loop().create_task(self._watch(host))

    async def _watch(self, host: Host) -> None:
        while self._alive:
            await asyncio.sleep(_LOOK_S)
            await self._look(host, _ANSWER_S)

    async def _look(self, host: Host, seconds: float, *, quietly: bool = False) -> None:
        """Take in what the host tells of its server; one that tells nothing is lost."""
        try:
            async with asyncio.timeout(seconds):
                told = await asyncio.wrap_future(host.ask("look", self._read))
        except (AgentRLError, TimeoutError) as error:
            self._alive = False
            self._ending = f"was lost with its host on {host.node}: {one_line(error) or 'it does not answer'}"
            return
        if self._alive and not told["alive"]:
            self._alive, self._ending = False, f"{told['ending']} on {host.node}"
        self._last = told["last"] or self._last
        if told["text"]:
            self._read += len(told["text"])
            await run_in_thread(self._write, told["text"])
        for text in () if quietly else told["said"]:
            self._say(f"{text} (on {host.node})")

    def _write(self, text: bytes) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            log.write(text)
