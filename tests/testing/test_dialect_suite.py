"""A dialect that breaks a promise fails the test that names it, and a sound one fails none."""

from __future__ import annotations

import pytest
from tests.testing.conftest import Failures

UNKNOWN = "test_a_field_that_is_not_known_is_refused_by_its_name"
VALUES = "test_no_value_of_a_field_is_more_than_refused"
ERRORS = "test_every_error_is_written"
OVERRIDE = "test_an_override_replaces_a_field_and_drops_it"
SAYS = "test_an_answer_holds_what_the_policy_says"
SAME = "test_a_stream_comes_to_the_whole_answer_however_it_is_cut"
EARLY = "test_a_stream_is_told_while_it_is_sampled"
LAST = "test_exactly_one_part_follows_the_last_completion"
BREAKS = "test_a_stream_that_breaks_off_says_why_and_ends"
FIELDS = "test_the_fields_that_it_describes_are_those_that_it_reads"
PATHS = "test_it_describes_each_of_its_routes_and_nothing_else"
REFERENCES = "test_every_reference_in_its_description_leads_somewhere"
SERVED = "test_its_routes_can_be_served_beside_chat_completions"


def attributes(name: str) -> str:
    told = "broken_dialects.Plain"
    return "\n".join(
        [
            f'dialect = "tests.testing.broken_dialects:{name}"',
            f"asks, streams = {told}.asks, {told}.streams",
            f"read = {told}.read",
        ]
    )


def test_a_suite_that_says_nothing_says_what_is_missing(failures: Failures) -> None:
    assert "set the class attribute `dialect`" in failures("DialectConformance", "asks = ()", SERVED)[SERVED]
    unread = 'dialect, asks, streams = "chat", broken_dialects.Plain.asks, True'
    assert "write `read`" in failures("DialectConformance", unread, SAME)[SAME]


@pytest.mark.parametrize(
    ("name", "select", "told"),
    [
        ("Lenient", UNKNOWN, "'no_such_field' is ignored"),
        ("Anonymous", UNKNOWN, "does not name it"),
        ("Careless", VALUES, "a client would be told 500"),
        ("Terse", ERRORS, "does not say 'mend it'"),
        ("Forgetful", OVERRIDE, "override does not say so"),
        ("Stubborn", OVERRIDE, "rollout.override.temperature=null"),
        ("Mute", SAYS, "the policy's words are not in"),
        ("Patient", EARLY, "it holds back"),
        ("Garrulous", LAST, "2 parts follow the last completion"),
        ("Lossy", SAME, "streamed it is read as"),
        ("Brittle", BREAKS, "the body raised the engine broke"),
        ("Boastful", FIELDS, "refuses it as a field that there is not"),
        ("Boastful", PATHS, "/chat/poems"),
        ("Secretive", FIELDS, "it takes the field 'logprobs', and does not describe it"),
        ("Secretive", REFERENCES, "there is no schema '#/components/schemas/Tool'"),
        ("Silent", PATHS, "it does not describe what it serves"),
        ("Misplaced", SERVED, "holds the /v1 that base URLs end in"),
    ],
)
def test_a_broken_promise_fails_its_test(failures: Failures, name: str, select: str, told: str) -> None:
    found = failures("DialectConformance", attributes(name), select)
    assert len(found) == 1, found
    assert told in next(iter(found.values()))
