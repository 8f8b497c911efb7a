"""What servers are asked when they start: what they lack is not claimed, and what would be wrong is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stub import Answer, choice, stub

from agentrl.errors import BackendError
from agentrl_vllm.client import Client
from agentrl_vllm.control import Facts, capabilities_of, describe_usable, read_facts

ALL = frozenset({"temperature", "seed", "stop", "top_logprobs", "top_p", "top_k", "grammar", "logit_bias"})


def facts(*, logprob: float = -3.0, forms: int = 200, biased: float = 0.0, **others: Any) -> Facts:
    """Those of a server that says so, and gives a token that was drawn with ``top_k=1`` this logprob.

    A request under a grammar is answered with the status ``forms``, and a token that a bias forces has the logprob
    ``biased``.
    """
    told = {
        "fault": None,
        "folder": "tiny",
        "dtype": "float32",
        "tied": False,
        "vocabulary": 500,
        "context": 64,
        "sequences": 8,
        "chunks": False,
        "device": "cpu",
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": 21,
        "text": True,
        **others,
    }

    async def handle(path: str, body: Any) -> Answer:
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/collective_rpc":
            return 200, {"results": [told]}
        params = body["sampling_params"]
        if "structured_outputs" in params:
            return forms, choice([1]) if forms == 200 else {"error": {"message": "no structured outputs here"}}
        if "logit_bias" in params:
            return 200, choice([int(token) for token in params["logit_bias"]], logprob=biased)
        return 200, choice([1], logprob=logprob)

    async def main() -> Facts:
        client = Client(5)
        async with stub(handle) as server:
            try:
                return await read_facts(client, server.url, await describe_usable(client, server.url), 5)
            finally:
                await client.close()

    return asyncio.run(main())


def test_a_server_that_can_do_everything() -> None:
    assert facts() == Facts(64, 8, ALL, "vLLM 0.32.0 on cpu in float32")
    on_gpu = facts(device="cuda", chunks=True, max_logprobs=-1, dtype="bfloat16")
    assert on_gpu == Facts(64, 8, ALL, "vLLM 0.32.0 on cuda in bfloat16")


@pytest.mark.parametrize(
    ("lack", "fields"),
    [
        ({"logprob": 0.0}, {"top_p", "top_k"}),
        ({"max_logprobs": 20}, {"top_logprobs"}),
        ({"text": False}, {"stop", "grammar"}),
        ({"forms": 400}, {"grammar"}),
        ({"biased": -2.0}, {"logit_bias"}),
    ],
    ids=["logprobs of what was cut", "too few logprobs", "no tokenizer", "no grammars", "logprobs without biases"],
)
def test_what_a_server_cannot_do_is_not_claimed(lack: dict[str, Any], fields: set[str]) -> None:
    assert facts(**lack).sampling == ALL - fields


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
        ({"chunks": True}, "--no-enable-chunked-prefill"),
    ],
)
def test_a_server_that_would_be_wrong_or_end_is_refused_with_the_flag_that_it_needs(wrong: Any, flag: str) -> None:
    with pytest.raises(BackendError, match=flag):
        facts(**wrong)


def test_servers_together_do_what_each_can() -> None:
    both = capabilities_of([Facts(64, 8, ALL), Facts(32, 4, ALL - {"stop"})])
    assert (both.context_length, both.max_concurrency, both.sampling) == (32, 12, ALL - {"stop"})
    assert not both.masked_logprobs
    assert [both.honours_temperature(each) for each in (0, 0.001, 0.01, 2, 2.1)] == [True, False, True, True, False]


def test_what_a_server_can_do_and_what_it_cannot_is_said_on_a_line() -> None:
    begin = "vLLM 0.32.0 on cpu in float32: context 64, 8 sequences at once; samples"
    can = "temperature 0.01 to 2, grammar, logit_bias, seed, stop, top_k, top_logprobs, top_p"
    assert str(facts()) == f"{begin} {can}"
    less = "temperature 0.01 to 2, logit_bias, seed, top_logprobs; not grammar, stop, top_k, top_p"
    assert str(facts(logprob=0.0, text=False)) == f"{begin} {less}"
