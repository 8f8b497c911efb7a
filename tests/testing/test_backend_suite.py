"""A backend that breaks a promise fails the test that names it."""

from __future__ import annotations

import pytest
from tests.testing.conftest import Failures

GREEDY = "test_greedy_tokens_are_the_likeliest"
LOGPROBS = "test_logprobs_are_of_the_distribution_after_temperature"
OFTEN = "test_tokens_come_as_often_as_the_distribution_says"
MOST, STOP_ID = "test_max_tokens_ends_a_completion", "test_a_stop_id_ends_a_completion_as_its_last_token"
STOP, SEED = "test_a_stop_string_ends_a_completion_that_holds_it", "test_equal_seeds_give_equal_tokens"
SCHEMA, WRONG = "test_completions_follow_a_json_schema", "test_a_grammar_that_is_wrong_is_refused and regular"
PATTERN = "test_completions_match_a_whole_regular_expression"
MASKED = "test_logprobs_under_a_grammar_are_of_the_allowed_tokens and json_schema"
BIASES = "test_biases_are_added_to_logits"
OTHERS = "test_alternatives_are_the_likeliest_tokens"
UNCLAIMED = "test_a_field_that_it_does_not_honour_is_refused"
BEYOND = "test_a_temperature_that_it_does_not_honour_is_refused"
DATED = "test_every_token_has_a_logprob_and_the_version_of_the_weights"
UPDATE = "test_tokens_are_those_of_the_new_weights_also_for_a_prompt_seen_before"
UPDATES = "test_update_after_update_is_exact"
ACROSS = "test_a_completion_under_way_keeps_its_tokens_and_goes_on_under_the_new_weights"
TIED = "test_tied_embeddings_are_replaced_at_both_ends"
HOLDS, SCORED = "test_it_holds_every_tensor_of_the_newest_weights", "test_given_tokens_are_scored_under_the_newest"
ANEW = "test_where_kv_is_to_be_computed_anew_tokens_are_wholly_the_new_weights_own"
PARTS, FREES = "test_a_stream_comes_in_parts", "test_a_request_that_is_given_up_frees_its_slot"
HARM, LONG = "test_the_error_of_one_request_harms_no_other", "test_a_prompt_that_fills_the_context_is_refused"
LOOPS, MANY = "test_it_serves_several_threads_and_loops", "test_more_requests_than_slots_are_all_answered"
ENDS = "test_it_stops_while_it_generates_and_stops_twice"


@pytest.mark.parametrize(
    ("backend", "failed", "told"),
    [
        ("Hot", GREEDY, "greedy, it took a token whose logprob is"),
        ("Hot", LOGPROBS, "logprobs are off by up to"),
        ("Rounded", LOGPROBS, "logprobs are off by up to"),
        ("Cold", OFTEN, "drawn 600 times"),
        ("Ending", MOST, "max_tokens=12 and no stop ids gave"),
        ("Swallowing", STOP_ID, "stopped by the id"),
        ("Unstopped", STOP, "came up, and the completion ended by finish='length'"),
        ("Formless", SCHEMA, "which is no JSON"),
        ("Formless", PATTERN, "under the regular expression '(yes|no), [0-9]{2,3}!' it wrote"),
        ("Formless", WRONG, "raise UnsupportedSampling"),
        ("Unmasked", MASKED, "logprobs of the allowed tokens are off by"),
        ("Unbiased", BIASES, "with logit_bias="),
        ("Unseeded", SEED, "beside other requests"),
        ("Unalternative", OTHERS, "are not the likeliest"),
        ("Cut", UNCLAIMED, "raise UnsupportedSampling"),
        ("Boundless", BEYOND, "temperature=0.25 is beyond capabilities.temperatures"),
        ("Whole", PARTS, "arrived in one chunk"),
        ("Stale", UPDATE, "and are those of the old ones"),
        ("Deaf", UPDATE, "and are those of the old ones"),
        ("Undated", UPDATE, "after the update to 1: {0}"),
        ("Lagging", f"{UPDATE} and greedy", "greedy, it took a token whose logprob is"),
        ("Lagging", f"{UPDATES} and greedy", "greedy, it took a token whose logprob is"),
        ("Lagging", f"{ACROSS} and greedy", "greedy, it took a token whose logprob is"),
        ("Keeping", f"{UPDATE} and greedy", "used the weights of version 1 after giving them back"),
        (
            "Redating",
            f"{ACROSS} and sampled",
            "read whole, tokens of the new version are not those of the new weights",
        ),
        (
            "Draining",
            f"{ACROSS} and sampled",
            "streamed, 400 tokens all carry version 4, also in the last of 5 updates",
        ),
        ("Forgetful", TIED, "after an update, tokens are not those of the new weights: logprobs are off by up to"),
        ("Deaf", HOLDS, "are not those of the weights it was given"),
        ("Secretive", HOLDS, "it does not tell of ['model.norm.weight']"),
        ("Mute", HOLDS, "it gives neither digests nor the reason why it cannot"),
        ("Remembering", HOLDS, "are not those of the weights it was given"),
        ("Deaf", SCORED, "given tokens are scored up to"),
        ("Hoarding", ANEW, "rest on KV of the old weights"),
        ("Stubborn", FREES, "a request after others were given up did not end within"),
        ("Brittle", HARM, "beside bad requests a good one gave BackendError"),
        ("Late", LONG, "raise PromptTooLong"),
        ("Vague", LONG, "something broke"),
        ("Homebound", LOOPS, "attached to a different loop"),
        ("Narrow", MANY, "all slots are taken"),
        ("Once", ENDS, "stopped already"),
    ],
)
def test_a_broken_promise_fails_its_test(failures: Failures, backend: str, failed: str, told: str) -> None:
    timeout = 5.0 if failed == FREES else 30.0
    attributes = f'backend = "tests.testing.broken_backends:{backend}"\ntimeout = {timeout}'
    (found,) = failures("BackendConformance", attributes, failed).items()
    assert found[0].startswith(failed.split()[0])
    assert told in found[1]
