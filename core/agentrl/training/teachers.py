"""Teachers at endpoints: the log-probabilities of given token ids, and whether a teacher has the policy's vocabulary.

An endpoint is asked as vLLM's ``/v1/completions`` takes it: a prompt of token ids, ``max_tokens: 1`` since none is not
taken, and ``prompt_logprobs: 0``, by which it tells the log-probability of every token of the prompt itself, at
temperature 1 over the whole vocabulary.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.algorithms.teacher import TeacherSettings
from agentrl.clients import client_library
from agentrl.costs.contract import UNMETERED, Meter, Usage
from agentrl.errors import AgentRLError, BackendError, ConfigError, GatewayError, about, shortened
from agentrl.inference.openai.answers import endpoint_error, is_for_good
from agentrl.inference.openai.endpoint import Endpoint, base_url, key_variable, make_client, variable_name
from agentrl.rollout.contract import Failure

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from transformers import PreTrainedTokenizerBase

    from agentrl.learner.contract import Ints, TrainBatch

__all__ = ["Asked", "EndpointTeacher", "check_same_vocabulary", "digest_of", "sequences_of"]

_AT = "algorithm.advantage"
_PROBED = 192
"""How many ids of the vocabulary are compared with the endpoint's."""
_UNKNOWN = "�"
"""Stands in a decoded text for bytes that are no whole character."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an endpoint answered about sequences, each by its digest."""

    logprobs: Mapping[str, Sequence[float]]
    """Of every token of a sequence but the first, under those before it."""
    failures: Mapping[str, Failure]


def digest_of(ids: Sequence[int]) -> str:
    """A name for a sequence of ids."""
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).hexdigest()[:32]


def sequences_of(batch: TrainBatch) -> list[tuple[Ints, Ints, int]]:
    """The sequences that hold the terms of ``batch``: ids, the terms whose tokens are on them, and their path.

    The last token of a conversation is on no path of a batch, and is added here; a term whose token the path does not
    go on with, since the conversation went on without it, has a sequence of its own.
    """
    targets, made = batch.targets, []
    for number, path in enumerate(batch.paths):
        terms = np.flatnonzero(targets.path == number)
        ends = terms[targets.depth[terms] == len(path) - 1]
        whole = np.append(path, targets.token[ends[:1]])
        follows = targets.depth[terms] + 1
        on_it = np.zeros(len(terms), dtype=np.bool_)
        within = follows < len(whole)
        on_it[within] = whole[follows[within]] == targets.token[terms[within]]
        if on_it.any():
            made.append((whole, terms[on_it], number))
        for term in terms[~on_it]:
            alone = np.append(path[: targets.depth[term] + 1], targets.token[term])
            made.append((alone, np.array([term]), number))
    return made


class EndpointTeacher:
    """A teacher behind an endpoint. Each call opens its connections and closes them."""

    def __init__(
        self, settings: TeacherSettings, environ: Mapping[str, str] | None = None, *, meter: Meter = UNMETERED
    ) -> None:
        """``meter`` is told of every request.

        Raises ``ConfigError`` for a URL that is none, and where the environment does not hold the key."""
        self._settings = settings
        self._meter = meter
        try:
            url, name = base_url(settings.url or ""), variable_name(settings.api_key_env)
        except ValueError as error:
            wrong = "api_key_env" if "variable" in str(error) and settings.url else "url"
            raise ConfigError(f"{_AT}.{wrong} {error}", key=f"{_AT}.{wrong}") from None
        variable = key_variable(url, name, is_said="api_key_env" in settings.model_fields_set)
        key = "none" if variable is None else (os.environ if environ is None else environ).get(variable, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {variable}, which holds the teacher's key, is not set",
                fix=f"set it to the key of {url}, or {_AT}.api_key_env to another variable, or to null for none",
                key=f"{_AT}.api_key_env",
            )
        self._endpoint = Endpoint(
            url, settings.model, variable, key_variable(url, None, is_said=False) is not None, key
        )

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ``ConfigError`` where the endpoint cannot be asked, or reads ids as other tokens than ``tokenizer``."""
        size = len(tokenizer)
        ids = np.unique(np.linspace(0, size - 1, num=min(size, _PROBED)).astype(np.int64))
        asked = asyncio.run(self._asked([ids], keep=True))
        digest = digest_of(ids.tolist())
        if digest in asked.failures:
            raise ConfigError(
                f"the teacher does not answer: {asked.failures[digest].reason}",
                fix=f"check {_AT}.url and {_AT}.model, and that the endpoint gives prompt_logprobs as vLLM does",
                key=f"{_AT}.url",
            )
        compared = 0
        for token, theirs in zip(ids[1:].tolist(), self._told, strict=True):
            ours = str(tokenizer.decode([token]))
            if theirs is None or _UNKNOWN in ours or _UNKNOWN in theirs:
                continue
            compared += 1
            if ours.strip() != theirs.strip():
                raise _other_vocabulary(self._settings.model, f"token {token} is {ours!r} here and {theirs!r} there")
        if not compared:
            raise ConfigError(
                f"whether the teacher {self._settings.model!r} has the same vocabulary cannot be told: the endpoint "
                "does not say which tokens it has read (decoded_token)",
                fix="serve the teacher with vLLM, or name its folder without a url",
                key=f"{_AT}.url",
            )

    def ask(self, sequences: Iterable[Ints]) -> Asked:
        """Return the log-probabilities of ``sequences``; those that the endpoint does not give have failed.

        Raises ``BackendError`` where the endpoint refuses whatever it is asked, as for a wrong key.
        """
        return asyncio.run(self._asked(list(sequences)))

    async def _asked(self, sequences: Sequence[Ints], *, keep: bool = False) -> Asked:
        places = asyncio.Semaphore(self._settings.concurrency)
        logprobs: dict[str, Sequence[float]] = {}
        failures: dict[str, Failure] = {}
        used: list[Usage] = []
        sent: list[None] = []
        async with make_client(self._endpoint, self._settings.timeout, lambda: sent.append(None)) as client:

            async def one(ids: list[int]) -> None:
                digest = digest_of(ids)
                try:
                    async with places, asyncio.timeout(self._settings.timeout):
                        scored = await self._scored(client, ids, used.append)
                except TimeoutError:
                    silent = f"it did not answer within {self._settings.timeout:g} s, all tries included"
                    failures[digest] = _failure(silent, "it did not answer in time")
                except GatewayError as error:
                    if is_for_good(error):
                        raise
                    failures[digest] = _failure(error.message, f"it answered {error.status}")
                except BackendError as error:
                    kind = error.message.removeprefix(self._endpoint.url).partition(":")[0].strip()
                    failures[digest] = _failure(error.message, kind)
                else:
                    logprobs[digest] = [value for value, _ in scored]
                    if keep:
                        self._told = [text for _, text in scored]

            tasks = [asyncio.ensure_future(one(ids.tolist())) for ids in sequences]
            try:
                await asyncio.gather(*tasks)
            except AgentRLError as error:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise BackendError(f"the teacher refuses every call: {error.message}", fix=error.fix) from error
            finally:
                lost = len(sent) - len(used)
                spent = sum(used, Usage(requests=lost, unknown=lost))
                self._meter.spend("learner", "teacher", self._settings.model, spent)
        return Asked(logprobs, failures)

    async def _scored(
        self, client: AsyncOpenAI, ids: list[int], used: Callable[[Usage], None]
    ) -> list[tuple[float, str | None]]:
        """The log-probability and the text of each id but the first; ``used`` is told what the answer has used."""
        from openai import APIError

        began = time.monotonic()

        body = {"model": self._endpoint.model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 1.0}
        options: Any = {"max_retries": self._settings.max_retries}
        try:
            response = await client.post("/completions", cast_to=client_library().Response, body=body, options=options)
        except APIError as error:
            raise endpoint_error(error, self._endpoint) from None  # Its text may repeat the key.
        try:
            answer = response.json()
            used(Usage.of_answer(answer.get("usage"), time.monotonic() - began))
            told = answer["choices"][0]["prompt_logprobs"]
            if len(told) != len(ids):
                raise ValueError(f"{len(told)} log-probabilities for {len(ids)} ids")
            return [_entry(entry[str(token)]) for token, entry in zip(ids[1:], told[1:], strict=True)]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            shown = self._endpoint.without_key(shortened(response.text))
            raise BackendError(
                f"it answered without the log-probability of every id ({type(error).__name__}): {shown}"
            ) from None

    _told: Sequence[str | None] = ()
    """How the endpoint writes the tokens that it was asked about last, where that was kept."""


def _entry(entry: Mapping[str, Any]) -> tuple[float, str | None]:
    value, text = entry["logprob"], entry.get("decoded_token")
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
        raise ValueError(f"{value!r} is no log-probability")
    return float(value), text if isinstance(text, str) else None


def _failure(reason: str, fingerprint: str) -> Failure:
    # What a teacher says of an episode is what the episode earns, so that side is at fault.
    return Failure("reward", f"the teacher did not score it: {reason}", f"teacher: {fingerprint}")


def check_same_vocabulary(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, sizes: tuple[int, int], teacher: str
) -> None:
    """Raise ``ConfigError`` where two tokenizers differ in an id, or the teacher knows fewer ids than the policy.

    ``sizes`` are the numbers of ids that the two models know.
    """
    with about(f"{_AT}.model"):
        mine, other = ours.get_vocab(), theirs.get_vocab()
        for text in mine.keys() | other.keys():
            if mine.get(text) != other.get(text):
                raise _other_vocabulary(teacher, f"{text!r} is {mine.get(text)} here and {other.get(text)} there")
        if sizes[1] < sizes[0]:
            raise _other_vocabulary(teacher, f"it knows {sizes[1]} ids, and the policy may sample {sizes[0]}")


def _other_vocabulary(teacher: str, difference: str) -> ConfigError:
    return ConfigError(
        f"the teacher {teacher!r} has another vocabulary than the model: {difference}",
        fix="choose a teacher of the model's own family, which has the same tokenizer",
        key=f"{_AT}.model",
    )
