"""What a server is asked about its weights: which it has, whether it would take others, and to take them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import BackendError, PluginError
from agentrl_vllm.client import Client
from agentrl_vllm.errors import ServerFailed

__all__ = ["Description", "Refused", "check", "describe", "pause", "release", "replace", "resume", "stamp"]

_EXTENSION = "agentrl_vllm.extension.WorkerExtension"
_DESCRIBE = "agentrl_describe"
_ANSWER_S = 60.0
"""How long an answer may take that needs a step of the engine at most."""
_LOAD_S = 300.0
"""How long new weights may take; with the rest of an update that stays below `inference.timeout`."""
_UNKNOWN = "default"
"""What a server says of its weights that nobody has told it a version of."""


class Refused(BackendError):
    """A server cannot take a folder of weights, and has not touched its own."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a server has loaded, and how it computes. Asked of its worker: ``/server_info`` takes seconds."""

    folder: str
    """The model folder, or the model's name on the hub, that its weights are from."""
    dtype: str
    tied: bool
    """Whether the model's head is its embedding."""
    vocabulary: int
    context: int
    """Most tokens of a prompt and its completion."""
    sequences: int
    """How many completions it samples at once."""
    chunks: bool
    """Whether it cuts long prompts in chunks."""
    device: str
    """``cpu`` or ``cuda``."""
    logprobs_mode: str
    max_logprobs: int
    """-1 for all of the vocabulary."""
    text: bool
    """Whether it has a tokenizer, which stop strings need."""


async def describe(client: Client, url: str) -> Description:
    """Ask a server. Raises ``BackendError`` where it lacks our extension, ``PluginError`` where it has another one."""
    try:
        answers = await _call(client, url, _DESCRIBE)
    except ServerFailed as error:
        if _DESCRIBE not in error.message:
            raise
        raise BackendError(  # The worker has no such method.
            f"the server at {url} cannot be told its weights: {error.message}",
            fix=f"install agentrl-vllm beside it and start it with --worker-extension-cls {_EXTENSION}",
        ) from error
    if faults := [answer["fault"] for answer in answers if answer.get("fault") is not None]:
        raise BackendError(
            f"the server at {url} does not tell what it has loaded: {faults[0]}",
            fix="use a version of vLLM that agentrl-vllm is tested with",
        )
    first = answers[0]
    if missing := [name for name in Description.__slots__ if name not in first]:
        raise PluginError(
            f"the server at {url} has another version of agentrl-vllm, which does not tell {', '.join(missing)}",
            fix="install the same version there as here",
        )
    return Description(**{name: first[name] for name in Description.__slots__})


async def check(client: Client, url: str, folder: Path) -> None:
    """Have all workers look at new weights. Raises ``Refused`` where they are broken or do not fit the model."""
    for answer in await _call(client, url, "agentrl_check", str(folder)):
        if (fault := answer["fault"]) is not None:
            is_hidden = "no folder that this server can see" in fault
            raise Refused(
                f"the new weights do not fit the model of the server at {url}: {fault}",
                fix="set inference.backend.weights_dir to a folder that it sees under the same path"
                if is_hidden
                else "train and sample the same model; the server keeps its old weights",
            )


async def pause(client: Client, url: str, mode: Literal["keep", "abort"]) -> None:
    """Stop between two steps. Requests under way keep their tokens and wait, or end; those that come wait."""
    await client.post(url, f"/pause?mode={mode}", seconds=_ANSWER_S)


async def replace(client: Client, url: str, folder: Path) -> None:
    """Load weights into a paused server, in place.

    Raises ``BackendError`` where that fails: then the server must not be resumed, and its workers end.
    """
    for answer in await _call(client, url, "agentrl_load", str(folder), seconds=_LOAD_S):
        if answer["fault"] is not None:
            raise BackendError(f"the server at {url} failed to load new weights: {answer['fault']}")


async def stamp(client: Client, url: str, version: int) -> None:
    """Make a paused server forget what its older weights computed, and say from now on that tokens are of ``version``.

    The text of requests under way is computed again. Raises ``BackendError`` where it does not confirm.
    """
    answer = await client.post(url, "/reset_prefix_cache?reset_running_requests=true", seconds=_ANSWER_S)
    if not answer["success"]:
        raise BackendError(f"the server at {url} still holds what older weights computed")
    await _label(client, url, str(version))
    confirmed = (await client.get(url, "/weight_info", seconds=_ANSWER_S))["weight_version"]
    if confirmed != str(version):
        raise BackendError(f"the server at {url} says that it has weights {confirmed}, and should have {version}")


async def resume(client: Client, url: str) -> None:
    """Go on after a pause."""
    await client.post(url, "/resume", seconds=_ANSWER_S)


async def release(client: Client, url: str) -> None:
    """Let a server go on whose weights may be any: without what it held, and with no version."""
    await pause(client, url, "abort")
    await _label(client, url, _UNKNOWN)
    await resume(client, url)


async def _label(client: Client, url: str, version: str) -> None:
    await client.post(url, "/update_weight_version", {"new_version": version}, seconds=_ANSWER_S)


async def _call(client: Client, url: str, method: str, *args: str, seconds: float = _ANSWER_S) -> list[dict[str, Any]]:
    """The answer of each worker of a server."""
    answer = await client.post(url, "/collective_rpc", {"method": method, "args": args}, seconds=seconds)
    results: list[dict[str, Any]] = answer["results"]
    return results
