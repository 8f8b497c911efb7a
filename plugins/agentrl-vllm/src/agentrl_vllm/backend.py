"""The backend ``vllm``: samples from vLLM servers, which are given the learner's weights in place."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from agentrl import BackendError, ConfigError, PluginError, PromptTooLong
from agentrl.hosting.contract import Hosts
from agentrl.inference.contract import (
    BackendContext,
    Capabilities,
    Chunk,
    EngineLoad,
    GenerationRequest,
    HeldWeights,
    Weights,
)
from agentrl_vllm.attached import AttachedServer
from agentrl_vllm.client import Client
from agentrl_vllm.command import ServingCommand, server_environment
from agentrl_vllm.connections import allow_open_files
from agentrl_vllm.control import Facts, capabilities_of, describe_usable, read_facts
from agentrl_vllm.fleet import Fleet
from agentrl_vllm.generation import Body, complete, request_body, sampling_params, score, stream
from agentrl_vllm.gpus import find_cuda
from agentrl_vllm.hosted import HostedServer, ModelFiles, read_model
from agentrl_vllm.installation import find_python, inspect_python
from agentrl_vllm.load import LoadReports
from agentrl_vllm.replica import Replica, ReplicaServer
from agentrl_vllm.server import Server
from agentrl_vllm.settings import VllmSettings
from agentrl_vllm.sleeping import Naps
from agentrl_vllm.weights import WeightSync

__all__ = ["VllmBackend", "build_replicas", "key_of", "start_timeout", "told_by_all"]


@dataclass(frozen=True, slots=True)
class _Running:
    """The parts that exist between start and stop."""

    client: Client
    weights: WeightSync
    fleet: Fleet
    naps: Naps
    capabilities: Capabilities
    loads: LoadReports


class VllmBackend:
    """Samples from vLLM servers.

    ``generate`` and ``load`` may be called from any loop and thread; all other methods belong to the event loop that
    started it.
    """

    Settings = VllmSettings
    takes_adapters = True

    def __init__(self, context: BackendContext, settings: VllmSettings | None = None) -> None:
        """Raises ``PluginError`` where there is no interpreter to start servers with.

        Raises ``ConfigError`` for settings that do not fit the environment or ``inference.timeout``, and for
        ``inference.in_flight=recompute`` with adapters.
        """
        if context.adapter is not None and context.in_flight == "recompute":
            raise ConfigError(
                "inference.in_flight=recompute cannot be with training.lora and vLLM: a request that is under way goes "
                "on to its end with the adapter that it began with",
                fix="leave inference.in_flight at keep, or use inference.backend=torch",
                key="inference.in_flight",
            )
        self._context = context
        self._settings = settings or VllmSettings.model_validate(context.options)
        if context.adapter is not None and self._settings.transfer not in ("auto", "folder"):
            raise ConfigError(
                f"inference.backend.transfer={self._settings.transfer} has no effect with training.lora: adapters are "
                "small, and go by a folder",
                fix="leave it out",
                key="inference.backend.transfer",
            )
        if not self._settings.urls and not (context.hosts is not None and context.hosts.elsewhere):
            find_python(self._settings.python)
        self._seconds = start_timeout(context, self._settings)
        self._is_hosted = context.hosts is not None and context.hosts.elsewhere and not self._settings.urls
        if self._settings.colocate:
            self._check_colocated()
        # Of servers that are reached over the network, each asks for a key.
        self._key = secrets.token_urlsafe(32) if self._is_hosted else key_of(self._settings, os.environ)
        self._running: _Running | None = None
        self._ending = AsyncExitStack()

    def _check_colocated(self) -> None:
        """Raise ``ConfigError`` where the servers cannot be on the learner's GPU and take turns with it."""
        if self._is_hosted:
            raise ConfigError(
                "inference.backend.colocate=true is for a learner and a server on one machine, and the scheduler "
                "places servers on any",
                fix="leave it out, or use scheduler.type=local",
                key="inference.backend.colocate",
            )
        if not find_cuda():
            raise ConfigError(
                "inference.backend.colocate=true needs vLLM's sleep mode, which needs CUDA, and there is no GPU here",
                fix="leave it out: on a CPU learner and servers have the memory together",
                key="inference.backend.colocate",
            )

    @property
    def sleeps(self) -> bool:
        """Whether the servers sleep while the learner steps: see ``Sleeper``."""
        return self._settings.colocate

    async def sleep(self) -> None:
        """Have the servers give up the GPU's memory; requests wait until ``wake``. See ``Sleeper``."""
        running = self._started()
        await running.naps.sleep(running.fleet.replicas)

    async def wake(self) -> None:
        """Have the servers take the memory up again. See ``Sleeper``."""
        running = self._started()
        await running.naps.wake(running.fleet.replicas)

    @property
    def replicas(self) -> Sequence[Replica]:
        """The replicas, in order; empty while the backend does not run."""
        return () if self._running is None else self._running.fleet.replicas

    async def start(self) -> Capabilities:
        """Start the servers, or attach to those that run, and return what they can do together.

        Raises ``PluginError`` where vLLM cannot be run, and ``BackendError`` for servers that do not start or cannot
        do what training needs; no process and no folder is left then.
        """
        context, settings = self._context, self._settings
        allow_open_files()
        async with AsyncExitStack() as stack:
            logs = context.logs or _temporary_logs(stack)
            client = Client(settings.request_timeout, self._key)
            weights = WeightSync(
                settings,
                client,
                context.model_folder,
                context.version,
                adapter=None if context.adapter is None else context.adapter.folder,
                recompute=context.in_flight == "recompute",
                say=context.say,
                lend=context.lend,
                key=self._key,
                bare=_starts_bare(context, settings),
                sees=not self._is_hosted or settings.weights_dir is not None,
            )
            naps = Naps(client, level=2 if context.adapter is None else 1)
            stack.callback(weights.close)
            facts: dict[int, Facts] = {}

            async def admit(replica: Replica) -> None:
                replica.phase = "being looked at"
                told = await describe_usable(client, replica.url)
                replica.phase = "being given its weights"
                await weights.admit(replica)
                replica.phase = "being asked for its first tokens"
                facts[replica.index] = await read_facts(client, replica.url, told, self._seconds)
                replica.phase = "being given the weights that came meanwhile"
                await weights.admit(replica)

            replicas = await build_replicas(
                context,
                settings,
                client,
                logs,
                weights.open(),
                weights.newest,
                admit,
                key=self._key,
                may_start=naps.until_awake,
            )
            fleet = Fleet(replicas, client, patience=self._seconds)
            stack.push_async_callback(client.close)
            stack.push_async_callback(weights.release)
            stack.push_async_callback(fleet.stop)
            await fleet.start()
            for kind in sorted({str(each) for each in facts.values()}):
                context.say(kind)
            loads = LoadReports(client, lambda: [each.url for each in fleet.replicas if each.state == "ready"])
            stack.callback(loads.close)
            self._running = _Running(client, weights, fleet, naps, capabilities_of(list(facts.values())), loads)
            self._ending = stack.pop_all()
        return self._running.capabilities

    async def stop(self) -> None:
        """End the servers that were started here; requests in flight raise ``BackendError``. Safe to call twice."""
        running, self._running = self._running, None
        if running is not None:
            running.naps.end()
        await self._ending.aclose()

    def load(self) -> EngineLoad | None:
        """Returns how many requests the servers sample and how many wait, as they said a moment ago."""
        running = self._running
        return None if running is None else running.loads.load()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Sample one completion; see ``Backend``.

        A request whose server fails begins again on another server, unless its tokens were streamed already.
        """
        running = self._started()
        body = _body(request, running.capabilities)
        chunks = running.fleet.sample(request.session, lambda replica: _chunks(running, replica, request, body))
        async with running.naps.awake(), aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def update_weights(self, weights: Weights) -> int:
        """Put new weights into every server; a server that does not take them is taken out and started anew with them.

        Returns how many bytes each was given. Raises ``BackendError`` where they fit no server, or a server's prefix
        cache serves what older ones computed.
        """
        running = self._started()
        await running.weights.put(weights, running.fleet.replicas)
        return running.weights.moved

    async def held_weights(self) -> HeldWeights:
        """Returns what the servers hold; see ``Backend``. Of one that is lost meanwhile, its successor is asked."""
        running = self._started()
        return await running.weights.odd_one(await running.fleet.ask_all(running.weights.held))

    async def score(self, ids: Sequence[int]) -> Sequence[float]:
        """Returns log-probabilities of ``ids[1:]``, of several servers so that each shows; see ``Backend``."""
        running = self._started()
        room = running.capabilities.context_length - len(ids)
        if room < 1:
            raise _too_long(len(ids), running.capabilities)

        async def scored(replica: Replica) -> list[float]:
            with running.weights.use(replica) as use:
                return await score(running.client, replica.url, ids, use.fields)

        return told_by_all(list((await running.fleet.ask_all(scored)).values()))

    def _started(self) -> _Running:
        if self._running is None:
            raise BackendError("the vLLM backend is not running", fix="await start() first")
        return self._running


async def _chunks(
    running: _Running, replica: Replica, request: GenerationRequest, body: Body
) -> AsyncGenerator[Chunk, None]:
    top = request.sampling.top_logprobs
    with running.weights.use(replica) as use:
        body = {**body, **use.fields}
        if not request.stream:
            yield await complete(running.client, replica.url, body, top, use.fixed)
            return
        version = replica.version if use.fixed is None else use.fixed
        chunks = stream(
            running.client,
            replica.url,
            body,
            top,
            lambda: version == running.weights.version,
            version or 0,
            fixed=use.fixed is not None,
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk


def _body(request: GenerationRequest, capabilities: Capabilities) -> Body:
    room = capabilities.context_length - len(request.prompt_ids)
    if room < 1:
        raise _too_long(len(request.prompt_ids), capabilities)
    return request_body(request, sampling_params(request.sampling, room, capabilities.sampling))


def _too_long(count: int, capabilities: Capabilities) -> PromptTooLong:
    return PromptTooLong(
        f"a prompt of {count} tokens leaves no room in the context of {capabilities.context_length}",
        fix="shorten it, or use a model with a longer context",
    )


def told_by_all(scores: Sequence[Sequence[float]]) -> Sequence[float]:
    """Returns scores of the same tokens in which each of several servers shows.

    Of three and more they are those of the server that is the farthest from the median; of two, where each is as far
    from it as the other, the tokens are taken in turns.
    """
    if len(scores) < 3:
        return [each[number % len(scores)] for number, each in enumerate(zip(*scores, strict=True))]
    middle = [median(each) for each in zip(*scores, strict=True)]
    return max(scores, key=lambda own: sum(abs(one - other) for one, other in zip(own, middle, strict=True)))


def _temporary_logs(stack: AsyncExitStack) -> Path:
    """A folder for logs that is removed at the end, unless the start failed and there is something to read."""
    folder = Path(tempfile.mkdtemp(prefix="agentrl-vllm-"))
    stack.push(lambda kind, *_: None if kind else shutil.rmtree(folder, ignore_errors=True))
    return folder


Make = Callable[[Path], ReplicaServer]

_SHARE = 0.95
"""The share of ``inference.timeout`` that a start gets by default, so that its own message comes first."""


def start_timeout(context: BackendContext, settings: VllmSettings) -> float:
    """Returns the seconds that a replica has to get ready.

    Raises ``ConfigError`` where ``inference.timeout`` would cancel the start before.
    """
    if context.timeout is None or settings.start_timeout < context.timeout:
        return settings.start_timeout
    if "start_timeout" in settings.model_fields_set:
        raise ConfigError(
            f"inference.backend.start_timeout={settings.start_timeout:g} is not less than "
            f"inference.timeout={context.timeout:g}, which bounds all of the start",
            fix="raise inference.timeout, or lower inference.backend.start_timeout",
        )
    return _SHARE * context.timeout


def key_of(settings: VllmSettings, environ: Mapping[str, str]) -> str | None:
    """Returns the API key of the servers in ``urls``, if any. Raises ``ConfigError`` where ``environ`` lacks it."""
    name = settings.api_key_env
    if name is not None and not environ.get(name, "").strip():
        raise ConfigError(
            f"the environment variable {name}, which inference.backend.api_key_env names, is not set",
            fix="set it to the key of the servers in inference.backend.urls, or leave it out where they need none",
        )
    return None if name is None else environ[name].strip()


async def build_replicas(
    context: BackendContext,
    settings: VllmSettings,
    client: Client,
    logs: Path,
    shared: Path,
    newest: Callable[[], tuple[Path, int]],
    admit: Callable[[Replica], Awaitable[None]],
    *,
    key: str | None = None,
    may_start: Callable[[], Awaitable[None]] | None = None,
) -> list[Replica]:
    """Returns the replicas that ``settings`` ask for, not started.

    Servers that are started here print to files in ``logs``. ``shared`` is the folder in which weights are handed
    over; ``newest``, ``admit`` and ``may_start`` are those of ``Replica``, and ``key`` is the servers'. Raises
    ``PluginError`` where there is no vLLM to start, and ``ConfigError`` for variables that are not set, times that do
    not fit, and GPUs that replicas would share.
    """
    seconds = start_timeout(context, settings)
    if settings.urls:
        makes = [_attaching(context, url, key, seconds) for url in settings.urls]
    elif context.hosts is not None and context.hosts.elsewhere:
        makes = await _hosting(context, context.hosts, settings, logs, key or "", seconds)
    else:
        makes = await _starting(context, settings, logs, shared, seconds)
    return [
        Replica(number, make, newest, admit, client=client, start_timeout=seconds, say=context.say, may_start=may_start)
        for number, make in enumerate(makes)
    ]


def _attaching(context: BackendContext, url: str, key: str | None, seconds: float) -> Make:
    server = AttachedServer(url, context.model_folder, key=key, return_timeout=seconds, say=context.say)
    return lambda folder: server


async def _starting(
    context: BackendContext, settings: VllmSettings, logs: Path, shared: Path, seconds: float
) -> list[Make]:
    python = find_python(settings.python)
    environ = server_environment(settings.env, os.environ, python)
    installation = await inspect_python(python, environ)

    def making(number: int) -> Make:
        command = ServingCommand(
            installation,
            settings,
            environ,
            number,
            sequences=context.max_concurrency,
            adapter=context.adapter,
            memory=context.memory,
        )
        return lambda folder: Server(
            lambda port, scratch: command.build(folder, port, scratch),
            name=f"vLLM server {number}",
            log=logs / f"vllm-{number}.log",
            port=settings.port and settings.port + number,
            shared=shared,
            start_timeout=seconds,
            say=context.say,
        )

    return [making(number) for number in range(settings.replicas)]


def _starts_bare(context: BackendContext, settings: VllmSettings) -> bool:
    """Whether servers are without the run's weights at first, which it lends: on machines that see no folder of it."""
    if context.lend is None or context.adapter is not None:
        return False
    if settings.urls:
        return settings.transfer in ("stream", "nccl")
    return context.hosts is not None and context.hosts.elsewhere and settings.transfer != "folder"


async def _hosting(
    context: BackendContext, hosts: Hosts, settings: VllmSettings, logs: Path, key: str, seconds: float
) -> list[Make]:
    for keyword, value in (("devices", settings.devices), ("port", settings.port)):
        if value:
            raise ConfigError(
                f"inference.backend.{keyword} is for servers on this machine, and the scheduler places them",
                fix="leave it out, and set inference.backend.tensor_parallel for replicas of several GPUs",
                key=f"inference.backend.{keyword}",
            )
    bare, folder = _starts_bare(context, settings), context.model_folder.absolute()
    gpus = settings.gpus if settings.tensor_parallel is not None else int(not await _is_for_cpus(settings))

    def model() -> ModelFiles | str:
        return read_model(folder) if bare else str(folder)

    def making(number: int) -> Make:
        return lambda _: HostedServer(
            hosts,
            settings,
            name=f"vLLM server {number}",
            number=number,
            sequences=context.max_concurrency,
            model=model,
            adapter=context.adapter,
            key=key,
            log=logs / f"vllm-{number}.log",
            gpus=gpus,
            start_timeout=seconds,
            say=context.say,
        )

    return [making(number) for number in range(settings.replicas)]


async def _is_for_cpus(settings: VllmSettings) -> bool:
    """Whether the vLLM of this machine is a build for CPUs; those of the others are taken to be of its kind."""
    try:
        python = find_python(settings.python)
        environ = server_environment(settings.env, os.environ, python)
        return (await inspect_python(python, environ)).is_cpu
    except PluginError:  # It is on the others alone.
        return not find_cuda()
