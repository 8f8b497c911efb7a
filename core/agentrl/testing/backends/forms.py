"""Tests of completions under grammars and with biased logits, for backends that name ``grammar`` or ``logit_bias``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from agentrl.errors import UnsupportedSampling
from agentrl.inference.contract import Chunk, Grammar
from agentrl.testing.backends.bench import BackendSuite, Bench, ask, needs

if TYPE_CHECKING:
    import torch

    from agentrl.inference.grammars import Grammars

__all__ = ["Forms"]

_SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
_PATTERN = "(yes|no), [0-9]{2,3}!"
_TAG = {
    "type": "structural_tag",
    "format": {
        "type": "sequence",
        "elements": [{"type": "const_string", "value": "It is "}, {"type": "regex", "pattern": "[0-9]{1,3}"}],
    },
}
_WRONG = {
    "a regular expression": Grammar("regex", "([a-z"),
    "a JSON schema": Grammar("json_schema", '{"type": "objct"}'),
    "JSON": Grammar("json_schema", "{"),
    "a structural tag": Grammar("structural_tag", '{"type": "structural_tag", "format": {"type": "nothing"}}'),
}
_FORMS = {
    "json_schema": Grammar("json_schema", json.dumps(_SCHEMA)),
    "regex": Grammar("regex", _PATTERN),
    "structural_tag": Grammar("structural_tag", json.dumps(_TAG)),
}


class Forms(BackendSuite):
    """Tests of what a completion is made to look like."""

    def test_completions_follow_a_json_schema(self, bench: Bench) -> None:
        chunks = _complete(bench, _FORMS["json_schema"], max_tokens=200)
        ended = [_text(bench, chunk) for chunk in chunks if chunk.finish == "stop"]
        assert ended, "none of the completions under a JSON schema of a few words ended within 200 tokens"
        for text in ended:
            try:
                value = json.loads(text)
            except ValueError:
                pytest.fail(f"under a JSON schema it wrote {text!r:.200}, which is no JSON")
            good = isinstance(value, dict) and sorted(value) == ["city", "days"]
            good = good and value["city"] in ("Rome", "Oslo") and value["days"] in range(1, 10)
            assert good, f"it wrote {text!r:.200}, which does not follow its JSON schema"

    def test_completions_match_a_whole_regular_expression(self, bench: Bench) -> None:
        for text in _texts(bench, _FORMS["regex"]):
            assert re.fullmatch(_PATTERN, text), f"under the regular expression {_PATTERN!r} it wrote {text!r:.200}"

    def test_completions_follow_a_structural_tag(self, bench: Bench) -> None:
        for text in _texts(bench, _FORMS["structural_tag"]):
            assert re.fullmatch("It is [0-9]{1,3}", text), f"under a structural tag it wrote {text!r:.200}"

    def test_a_json_object_is_one(self, bench: Bench) -> None:
        for chunk in _complete(bench, Grammar("json_object"), max_tokens=200):
            if chunk.finish == "stop":
                text = _text(bench, chunk)
                try:
                    value = json.loads(text)
                except ValueError:
                    value = None
                assert isinstance(value, dict), f"under json_object it wrote {text!r:.200}"

    @pytest.mark.parametrize("kind", _FORMS)
    def test_logprobs_under_a_grammar_are_of_the_allowed_tokens(self, kind: str, bench: Bench) -> None:
        chunks = _complete(bench, _FORMS[kind])
        if not bench.capabilities.masked_logprobs:
            pytest.skip("the backend does not claim logprobs of the allowed tokens: masked_logprobs is false")
        for prompt, chunk in zip(bench.prompts(), chunks, strict=True):
            free = bench.reference.logprobs(prompt, chunk.ids)
            expected = _masked(bench, _FORMS[kind], chunk, free)
            ours = expected[range(len(chunk.ids)), list(chunk.ids)]
            off_by = float((ours - ours.new_tensor(chunk.logprobs)).abs().max())
            assert off_by <= self.tolerance, f"under a {kind}, logprobs of the allowed tokens are off by {off_by:.2g}"

    def test_a_grammar_is_of_one_request_alone(self, bench: Bench) -> None:
        needs(bench, "grammar")
        prompts = bench.prompts()
        free = [ask(prompt, temperature=0, max_tokens=8) for prompt in prompts]
        alone = bench.complete(*free)
        held = ask(prompts[0], temperature=0, max_tokens=60, grammar=_FORMS["regex"], stop_ids=_ends(bench))
        *among, _ = bench.complete(*free, held)
        for chunk, expected in zip(among, alone, strict=True):
            assert chunk.ids == expected.ids, "beside a request with a grammar others gave other tokens"

    @pytest.mark.parametrize("what", _WRONG)
    def test_a_grammar_that_is_wrong_is_refused(self, what: str, bench: Bench) -> None:
        needs(bench, "grammar")
        prompt = bench.prompts(1)[0]
        ended, good = bench.outcomes(ask(prompt, max_tokens=2, grammar=_WRONG[what]), ask(prompt, max_tokens=2))
        told = f"{_WRONG[what].text!r} is no {what.removeprefix('a ')}, and gave {ended!r:.200}"
        assert isinstance(ended, UnsupportedSampling), f"{told}: raise UnsupportedSampling"
        assert isinstance(good, Chunk), f"beside a wrong grammar a good request gave {good!r:.200}"

    def test_biases_are_added_to_logits(self, bench: Bench) -> None:
        needs(bench, "logit_bias")
        prompt = bench.prompts(1)[0]
        (free,) = bench.complete(ask(prompt, temperature=0, max_tokens=1))
        other = (free.ids[0] + 1) % bench.vocabulary
        bias = ((other, 2.0), (free.ids[0], -1.5))
        (chunk,) = bench.complete(ask(prompt, max_tokens=1, logit_bias=bias))
        expected = bench.reference.logprobs(prompt, chunk.ids)
        for token, value in bias:
            expected[:, token] += value
        off_by = abs(float(expected.log_softmax(-1)[0, chunk.ids[0]]) - chunk.logprobs[0])
        assert off_by <= self.tolerance, f"with logit_bias={bias}, a logprob is off by {off_by:.2g}"
        (forced,) = bench.complete(ask(prompt, max_tokens=3, logit_bias=((other, 100.0),)))
        assert forced.ids == (other,) * 3, f"with a bias of 100 for {other} it sampled {forced.ids}"


def _complete(bench: Bench, grammar: Grammar, max_tokens: int = 60, **sampling: Any) -> list[Chunk]:
    needs(bench, "grammar")
    requests = [
        ask(prompt, max_tokens=max_tokens, grammar=grammar, stop_ids=_ends(bench), **bench.seed(number), **sampling)
        for number, prompt in enumerate(bench.prompts())
    ]
    return bench.complete(*requests)


def _texts(bench: Bench, grammar: Grammar) -> Iterator[str]:
    for chunk in _complete(bench, grammar):
        text = _text(bench, chunk)
        assert chunk.finish == "stop", f"60 tokens did not end {text!r:.200}, which a grammar of a few words allows"
        assert chunk.ids[-1] in _ends(bench), f"under a grammar a completion ended with {chunk.ids[-1]}, no stop id"
        yield text


def _ends(bench: Bench) -> frozenset[int]:
    return bench.renderer.stop_ids


def _text(bench: Bench, chunk: Chunk) -> str:
    """The text of a completion without the id that ended it."""
    ids = chunk.ids[:-1] if chunk.ids and chunk.ids[-1] in _ends(bench) else chunk.ids
    return bench.renderer.vocabulary.decode(ids)


def _masked(bench: Bench, grammar: Grammar, chunk: Chunk, logprobs: torch.Tensor) -> torch.Tensor:
    import numpy as np
    import torch

    masks = _grammars(bench).masks(grammar, _ends(bench), chunk.ids)
    assert masks is not None, f"the grammar does not allow the ids of {_text(bench, chunk)!r:.200}"
    allowed = np.unpackbits(masks, axis=1, bitorder="little")[:, : logprobs.shape[1]]
    return logprobs.masked_fill(torch.from_numpy(allowed == 0), -torch.inf).log_softmax(-1)


def _grammars(bench: Bench) -> Grammars:
    from agentrl.inference.grammars import grammars_of

    found = grammars_of(bench.reference.folder)
    assert found is not None, "xgrammar, which comes with agentrl-core[train], is not installed"
    return found
