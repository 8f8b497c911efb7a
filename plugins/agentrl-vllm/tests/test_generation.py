"""How a request is put to vLLM, and what becomes of its answer."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from stub import Answer, choice, stub

from agentrl.errors import BackendError, UnsupportedSampling
from agentrl.inference.contract import Capabilities, Chunk, Grammar, Sampling
from agentrl_vllm.client import Client, ServerFailed
from agentrl_vllm.generation import complete, sampling_params, stream, versions_of

ALL = Capabilities(2, 1).sampling | {"grammar", "logit_bias"}


def test_every_field_is_told() -> None:
    sampling = Sampling(0.7, 0.9, 5, 12, 34, ("\n",), frozenset({9, 2}), top_logprobs=3)
    params = sampling_params(sampling, 100, ALL)
    assert params == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 34,
        "max_tokens": 12,
        "stop": ["\n"],
        "skip_special_tokens": False,
        "stop_token_ids": [2, 9],
        "ignore_eos": True,
        "logprobs": 4,
        "detokenize": True,
    }


def test_the_context_bounds_the_completion() -> None:
    assert sampling_params(Sampling(), 7, ALL)["max_tokens"] == 7
    assert sampling_params(Sampling(max_tokens=9), 7, ALL)["max_tokens"] == 7
    assert sampling_params(Sampling(max_tokens=3), 7, ALL)["max_tokens"] == 3


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        (Grammar("json_object"), {"json_object": True}),
        (Grammar("regex", "[0-9]+"), {"regex": "[0-9]+"}),
        (Grammar("json_schema", '{"type": "object"}'), {"json": {"type": "object"}}),
        (Grammar("structural_tag", '{"type": "structural_tag"}'), {"structural_tag": '{"type": "structural_tag"}'}),
    ],
)
def test_a_grammar_is_told_as_a_structured_output(grammar: Grammar, told: dict[str, object]) -> None:
    assert sampling_params(Sampling(grammar=grammar), 7, ALL)["structured_outputs"] == told
    assert "structured_outputs" not in sampling_params(Sampling(), 7, ALL)


@pytest.mark.parametrize("kind", ["json_schema", "structural_tag"])
def test_a_grammar_that_is_no_json_is_refused(kind: Any) -> None:
    with pytest.raises(UnsupportedSampling, match="no JSON"):
        sampling_params(Sampling(grammar=Grammar(kind, "{")), 7, ALL)


def test_biases_are_told_by_id() -> None:
    assert sampling_params(Sampling(logit_bias=((7, 1.5),)), 7, ALL)["logit_bias"] == {"7": 1.5}
    assert "logit_bias" not in sampling_params(Sampling(), 7, ALL)


def test_text_is_made_only_to_look_for_stop_strings_in_it() -> None:
    assert sampling_params(Sampling(), 7, ALL)["detokenize"] is False


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_or_refuse_is_refused(temperature: float) -> None:
    with pytest.raises(UnsupportedSampling, match=f"not at {temperature:g}"):
        sampling_params(Sampling(temperature), 7, ALL)


@pytest.mark.parametrize(
    "field",
    [
        {"top_p": 0.5},
        {"top_k": 3},
        {"stop": ("x",)},
        {"top_logprobs": 2},
        {"grammar": Grammar("json_object")},
        {"logit_bias": ((1, 2.0),)},
    ],
)
def test_a_field_that_the_servers_do_not_honour_is_refused(field: dict[str, object]) -> None:
    (name,) = field
    with pytest.raises(UnsupportedSampling, match=name):
        sampling_params(Sampling(**field), 7, ALL - {name})  # type: ignore[arg-type]
    sampling_params(Sampling(), 7, ALL - {name})


def spans(*ends: tuple[str, int]) -> list[dict[str, Any]]:
    starts = [0, *(end for _, end in ends)]
    return [
        {"version": version, "start": start, "end": end} for (version, end), start in zip(ends, starts, strict=False)
    ]


def whole(answer: Any, top: int = 0) -> Chunk:
    """What ``complete`` makes of ``answer``."""

    async def main() -> Chunk:
        async def handle(path: str, body: Any) -> Answer:
            return 200, answer

        client = Client(5)
        async with stub(handle) as server:
            try:
                return await complete(client, server.url, {}, top)
            finally:
                await client.close()

    return asyncio.run(main())


def streamed(events: list[Any], *, settled: list[bool]) -> list[Chunk]:
    """What ``stream`` gives, of version 3, if ``settled()`` says so after each event."""

    async def main() -> list[Chunk]:
        async def handle(path: str, body: Any) -> Answer:
            return events

        client, answers = Client(5), iter(settled)
        async with stub(handle) as server:
            try:
                async with aclosing(stream(client, server.url, {}, 0, lambda: next(answers), 3)) as chunks:
                    return [chunk async for chunk in chunks]
            finally:
                await client.close()

    return asyncio.run(main())


def test_spans_say_the_version_of_each_token() -> None:
    assert versions_of(spans(("3", 2), ("4", 5)), 5) == (3, 3, 4, 4, 4)
    assert versions_of(spans(("3", 1), ("4", 3), ("6", 4)), 4) == (3, 4, 4, 6), "one that goes on across two updates"
    assert versions_of(None, 0) == ()


@pytest.mark.parametrize("told", [None, spans(("3", 2)), spans(("default", 5)), spans(("3", 6)), spans(("3", 2))[1:]])
def test_tokens_without_a_version_of_the_run_are_an_error(told: Any) -> None:
    with pytest.raises(BackendError, match="versions of this run"):
        versions_of(told, 5)


@pytest.mark.parametrize("logprob", [-9999.0, None])
def test_a_logprob_that_is_no_number_is_an_error(logprob: float | None) -> None:
    with pytest.raises(BackendError, match="no number"):
        whole(choice([1, 2], logprob=logprob))


def test_an_answer_that_is_no_json_is_a_failure_of_the_server() -> None:
    unreadable = choice([1, 2], finish="stop", logprob=float("-inf"))
    with pytest.raises(ServerFailed, match=r"no JSON object: .*Infinity"):
        whole(unreadable)
    with pytest.raises(ServerFailed, match=r"no JSON object: .*Infinity"):
        streamed([unreadable], settled=[True])


def test_tokens_without_logprobs_are_an_error() -> None:
    with pytest.raises(BackendError, match="no number"):
        whole(choice([1, 2], logprobs=None))


def test_a_stop_string_is_told_and_a_stop_id_is_not() -> None:
    assert whole(choice([1, 2], finish="stop", stop_reason="\n")).stop_string == "\n"
    assert whole(choice([1, 2], finish="stop", stop_reason=2)).stop_string is None


def test_a_completion_that_the_server_gave_up_is_a_failure_of_the_server() -> None:
    with pytest.raises(ServerFailed, match="abort"):
        whole(choice([1], finish="abort"))
    with pytest.raises(ServerFailed, match="abort"):
        whole(choice([1], finish="abort", version=None))
    with pytest.raises(ServerFailed, match="abort"):
        streamed([choice([1], finish="abort", version=None)], settled=[True])


def test_alternatives_are_the_likeliest_though_the_sampled_token_comes_first() -> None:
    listed = [{"token_id": 9, "logprob": -5.0}, {"token_id": 4, "logprob": -0.1}, {"token_id": 5, "logprob": -2.0}]
    content = {"content": [{"token_id": 9, "logprob": -5.0, "top_logprobs": listed}]}
    assert whole(choice([9], logprobs=content), top=2).top_logprobs == (((4, -0.1), (5, -2.0)),)


def test_a_stream_gives_tokens_as_they_come() -> None:
    events = [choice([1], finish=None, version=None), choice([2, 3], finish=None, version=None)]
    last = choice([4], weight_versions=spans(("3", 4)))
    chunks = streamed([*events, last], settled=[True, True])
    assert [chunk.ids for chunk in chunks] == [(1,), (2, 3), (4,)]
    assert [chunk.versions for chunk in chunks] == [(3,), (3, 3), (3,)]
    assert [chunk.finish for chunk in chunks] == [None, None, "length"]
    assert [chunk.first_token is None for chunk in chunks] == [False, True, True]
    assert whole(choice([1, 2])).first_token is None, "a server that answers at once tells nothing of the first token"


def test_what_comes_once_weights_change_is_held_until_its_versions_are_known() -> None:
    events = [choice([token], finish=None, version=None) for token in (1, 2, 3)]
    last = choice([4], weight_versions=spans(("3", 2), ("4", 4)))
    chunks = streamed([*events, last], settled=[True, False, False])
    assert [(chunk.ids, chunk.versions) for chunk in chunks] == [((1,), (3,)), ((2, 3, 4), (3, 4, 4))]


def test_a_stream_whose_tokens_were_of_other_weights_than_they_were_given_out_as_is_an_error() -> None:
    last = choice([2], weight_versions=spans(("4", 2)))
    with pytest.raises(BackendError, match=r"given out as of weights 3, .* \[4\]"):
        streamed([choice([1], finish=None, version=None), last], settled=[True])


def test_a_stream_that_breaks_off_is_a_failure_of_the_server() -> None:
    with pytest.raises(ServerFailed, match="without a reason"):
        streamed([choice([1], finish=None, version=None)], settled=[True])
    with pytest.raises(ServerFailed, match="it broke"):
        streamed([{"error": {"message": "it broke"}}], settled=[])
