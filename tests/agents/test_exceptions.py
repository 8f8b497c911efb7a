"""What is said of an exception that an agent raised."""

import httpx
import openai

from agentrl.agents.exceptions import describe, is_api_error
from agentrl.gateway.session import new_credentials


def raised(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_place_is_the_authors_own():
    def broken():
        return {}["missing"]

    assert describe(raised(broken)).startswith("KeyError: 'missing' at ")
    assert "in broken" in describe(raised(broken))


def test_an_error_is_one_line_and_not_without_end():
    def broken():
        raise ValueError("one\ntwo\n" + "x" * 10_000)

    text = describe(raised(broken))
    assert "\n" not in text
    assert len(text) <= 400


def test_what_a_client_raised_is_known_behind_what_was_made_of_it():
    def broken():
        try:
            raise httpx.HTTPStatusError("no", request=httpx.Request("GET", "http://x"), response=httpx.Response(400))
        except httpx.HTTPError as error:
            raise RuntimeError("the model failed") from error

    assert is_api_error(raised(broken))
    assert not is_api_error(ValueError("no"))


def test_a_connection_that_failed_says_why():
    def broken(why):
        try:
            try:
                raise OSError(why)
            except OSError as error:
                raise openai.APIConnectionError(request=httpx.Request("POST", "https://x")) from error
        except openai.OpenAIError as error:
            raise RuntimeError("the model failed") from error

    said = describe(raised(lambda: broken("nobody listens")))
    assert said.startswith("RuntimeError: the model failed (nobody listens) at ")
    said = describe(raised(lambda: broken("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")))
    assert "SSL_CERT_FILE, in agent.env for agents in workers, names the certificates" in said
    misnamed = "[SSL: CERTIFICATE_VERIFY_FAILED] IP address mismatch, certificate is not valid for '10.0.0.1'"
    assert "SSL_CERT_FILE" not in describe(raised(lambda: broken(misnamed)))


def test_an_error_of_httpx_without_its_request_is_a_clients():
    assert is_api_error(error := httpx.ConnectError("refused"))
    assert describe(error) == "ConnectError: refused"


def test_exceptions_that_cause_each_other_are_followed_once():
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_api_error(first)


def test_secrets_and_texts_that_cannot_be_had_are_left_out():
    key = new_credentials().key

    class Odd(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def broken(error):
        raise error

    assert key not in (said := describe(raised(lambda: broken(LookupError(f"no {key}")))))
    assert said.startswith("LookupError: no sk-agentrl-")
    assert describe(raised(lambda: broken(Odd()))).startswith("Odd: its text cannot be had, RuntimeError")
