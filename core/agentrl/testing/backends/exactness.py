"""Tests that tokens and logprobs are those of the model."""

from __future__ import annotations

import pytest

from agentrl.testing.backends.bench import BackendSuite, Bench, ask, needs, needs_temperature, needs_training

__all__ = ["Exactness"]

_DRAWS = 600


class Exactness(BackendSuite):
    """Tests against a plain forward of the same weights."""

    def test_every_token_has_a_logprob_and_the_version_of_the_weights(self, bench: Bench) -> None:
        for chunk in bench.complete(*(ask(prompt, max_tokens=9) for prompt in bench.prompts())):
            told = f"{len(chunk.ids)} ids have {len(chunk.logprobs)} logprobs and {len(chunk.versions)} versions"
            assert len(chunk.ids) == len(chunk.logprobs) == len(chunk.versions), told
            assert set(chunk.versions) == {bench.reference.version}, "tokens do not carry the version of the weights"

    def test_greedy_tokens_are_the_likeliest(self, bench: Bench) -> None:
        for compared in bench.sample(temperature=0, max_tokens=12):
            told = f"greedy, it took a token whose logprob is {compared.behind:.2g} below the best"
            assert compared.behind <= self.tolerance, told

    def test_greedy_logprobs_are_of_temperature_one(self, bench: Bench) -> None:
        needs_training(bench)
        self._is_exact(bench, temperature=0)

    @pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
    def test_logprobs_are_of_the_distribution_after_temperature(self, temperature: float, bench: Bench) -> None:
        needs_training(bench)
        needs_temperature(bench, temperature)
        self._is_exact(bench, temperature=temperature)

    def test_top_k_cuts_the_draw_and_not_the_logprobs(self, bench: Bench) -> None:
        needs_training(bench)
        needs(bench, "top_k")
        needs_temperature(bench, 1.6)
        self._is_exact(bench, top_k=2, temperature=1.6)
        for compared in bench.sample(top_k=2, temperature=1.6, max_tokens=12):
            likelier = (compared.expected > compared.chosen[:, None] + self.tolerance).sum(1)
            assert int(likelier.max()) < 2, "it drew a token that top_k=2 leaves out"

    def test_top_p_cuts_the_draw_and_not_the_logprobs(self, bench: Bench) -> None:
        needs_training(bench)
        needs(bench, "top_p")
        needs_temperature(bench, 1.6)
        self._is_exact(bench, top_p=0.5, temperature=1.6)
        for compared in bench.sample(top_p=0.5, temperature=1.6, max_tokens=12):
            likelier = compared.expected > compared.chosen[:, None] + self.tolerance
            mass = float((compared.expected.exp() * likelier).sum(1).max())
            assert mass < 0.5 + self.tolerance, "it drew a token that top_p=0.5 leaves out"

    def test_alternatives_are_the_likeliest_tokens(self, bench: Bench) -> None:
        needs(bench, "top_logprobs")
        for compared in bench.sample(top_logprobs=3, max_tokens=6):
            assert len(compared.chunk.top_logprobs) == len(compared.chunk.ids), "not every token has alternatives"
            best = compared.expected.topk(3).values.tolist()
            for position, alternatives in enumerate(compared.chunk.top_logprobs):
                ours = [float(compared.expected[position, token]) for token, _ in alternatives]
                stated = [logprob for _, logprob in alternatives]
                assert stated == pytest.approx(ours, abs=self.tolerance), "alternatives have other logprobs"
                assert ours == pytest.approx(best[position], abs=self.tolerance), "alternatives are not the likeliest"

    def test_tokens_come_as_often_as_the_distribution_says(self, bench: Bench) -> None:
        """Pearson's statistic of first tokens, within six standard deviations of its mean."""
        prompt = bench.prompts(1)[0]
        chunks = bench.complete(*(ask(prompt, max_tokens=1, **bench.seed(number)) for number in range(_DRAWS)))
        expected = bench.reference.logprobs(prompt, [0])[0].exp() * _DRAWS
        counts = expected.new_zeros(len(expected))
        for chunk in chunks:
            counts[chunk.ids[0]] += 1
        often = expected >= 5
        pairs = [(float(counts[often][at]), float(expected[often][at])) for at in range(int(often.sum()))]
        pairs.append((float(counts[~often].sum()), float(expected[~often].sum())))
        statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs if wanted > 0)
        freedom = max(len(pairs) - 1, 1)
        assert statistic < freedom + 6 * (2 * freedom) ** 0.5, f"drawn {_DRAWS} times: {pairs} (seen, expected)"

    def test_a_prompt_that_goes_on_from_a_completion_is_exact(self, bench: Bench) -> None:
        """As the turns of a conversation do, whose prefixes a backend may keep."""
        needs_training(bench)
        prompt = bench.prompts(1)[0]
        for _ in range(3):
            (chunk,) = bench.complete(ask(prompt, max_tokens=6))
            off_by = bench.reference.off_by(prompt, chunk)
            assert off_by <= self.tolerance, f"as a prompt goes on, logprobs are off by up to {off_by:.2g}"
            prompt = [*prompt, *chunk.ids, *bench.prompts(2)[1]]

    def _is_exact(self, bench: Bench, **sampling: float) -> None:
        off_by = max(compared.off_by for compared in bench.sample(max_tokens=12, **sampling))
        assert off_by <= self.tolerance, f"with {sampling}, logprobs are off by up to {off_by:.2g}"
