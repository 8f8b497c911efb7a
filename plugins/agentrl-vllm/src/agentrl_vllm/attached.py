"""An attached server: one that runs already and that agentrl neither starts nor ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from agentrl import BackendError, PluginError, run_in_thread
from agentrl_vllm.client import Client, Reply, ServerFailed
from agentrl_vllm.installation import OLDEST
from agentrl_vllm.replica import engine_answers

__all__ = ["AttachedServer"]

_GENERATE = "/inference/v1/generate"
_PROBE = "The answer is 42.\n\tdef f(x): return {'a': 1.5e-3} <|im_start|> Größe 你好 🙂"
_ANSWER_S = 30.0
_PAUSE_S = 1.0


class AttachedServer:
    """The server at a URL. Nothing here starts or ends it."""

    ours = False

    def __init__(
        self,
        url: str,
        model_folder: Path,
        *,
        key: str | None = None,
        return_timeout: float = 570,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``model_folder`` is the model that the server should serve, and ``key`` its API key, if it has one.

        A server that was there before and is gone is waited for, up to ``return_timeout`` seconds. ``say`` is called
        with what a user should know.
        """
        self.url = url
        self.name = f"the vLLM server at {url}"
        self.model = ""
        """The server's name of the model; set by ``start``."""
        self.alive = False
        self.ending = "is gone"
        self._folder = model_folder
        self._key = key
        self._return_timeout = return_timeout
        self._say = say
        self._was_there = False

    async def start(self) -> None:
        """Check that the server answers, is new enough, takes token ids and serves the model.

        Raises ``PluginError`` for a version that is too old, and ``BackendError`` for any other fault.
        """
        async with Client(_ANSWER_S, self._key) as client:
            if self._was_there:
                await self._come_back(client)
            await self._check_version(client)
            await self._check_tokens(client)
            await self._check_model(client)
        self.alive = self._was_there = True

    async def stop(self) -> None:
        """Stop relying on the server, which goes on running."""
        self.alive = False

    def kill(self) -> None:
        """Stop relying on the server, which goes on running."""
        self.alive = False

    async def place(self, folder: Path) -> str:
        """Returns the path under which it sees ``folder``: the same."""
        return str(folder)

    def last_lines(self) -> str:
        """Returns an empty text, because the server's output is elsewhere."""
        return ""

    async def _come_back(self, client: Client) -> None:
        self._say(f"waiting for {self.name}")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._return_timeout
        while not await engine_answers(client, self.url):
            if loop.time() > deadline:
                raise BackendError(
                    f"{self.name} did not come back within {self._return_timeout:g} s", fix="start it again"
                )
            await asyncio.sleep(_PAUSE_S)

    async def _ask(self, client: Client, path: str, body: object = None) -> Reply:
        try:
            return await client.reply(self.url, path, body)
        except ServerFailed as error:
            raise BackendError(
                f"the server at {self.url} does not answer {path}: {error.message}", fix="does it run?"
            ) from error

    async def _check_version(self, client: Client) -> None:
        answer = await self._ask(client, "/version")
        version = _object(answer).get("version")
        if version is None:
            raise BackendError(
                f"what answers at {self.url} is no vLLM server: GET /version gave status {answer.status}",
                fix="correct inference.backend.urls",
            )
        self._version = str(version)

    async def _check_tokens(self, client: Client) -> None:
        status = (await self._ask(client, _GENERATE, {})).status
        if status == 404:
            raise PluginError(
                f"{self.name} is vLLM {self._version}, which is too old: it has no {_GENERATE}",
                fix=f"run vLLM {OLDEST} or later there",
            )
        if status == 403:
            raise BackendError(
                f"{self.name} takes no token ids: its scale-out endpoints are disabled",
                fix="start it with --enable-scale-out",
            )
        if status == 401:
            told = "does not take the API key that it is shown" if self._key else "asks for an API key"
            raise BackendError(
                f"{self.name} {told}", fix="set inference.backend.api_key_env to the variable that holds its key"
            )

    async def _check_model(self, client: Client) -> None:
        models = _object(await self._ask(client, "/v1/models")).get("data") or []
        served = next((model for model in models if not model.get("parent")), None)
        if served is None:
            raise BackendError(f"{self.name} serves no model", fix=f"start it with {self._folder}")
        self.model = str(served["id"])
        question = {"model": self.model, "prompt": _PROBE, "add_special_tokens": False}
        theirs = _object(await self._ask(client, "/tokenize", question)).get("tokens")
        if theirs != await run_in_thread(_tokens, self._folder):
            raise BackendError(
                f"{self.name} serves the wrong model: {served.get('root') or self.model}, whose tokenizer is not that "
                f"of {self._folder}",
                fix=f"start it with {self._folder}, or set model to what it serves",
            )


def _object(answer: Reply) -> dict[str, Any]:
    """The JSON object of an answer; empty where the answer is an error, or something else."""
    content = answer.value if answer.status == HTTPStatus.OK else None
    return content if isinstance(content, dict) else {}


def _tokens(folder: Path) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return list(tokenizer.encode(_PROBE, add_special_tokens=False))
