"""The document at ``GET /openapi.json``: exactly the routes that are served, with what the gateway does for all."""

from __future__ import annotations

import httpx2
import pytest
from tests.gateway.conftest import CONTEXT, ScriptedBackend
from tests.gateway.telegraph import Telegraph

from agentrl.gateway import EngineCompleter, Gateway
from agentrl.gateway.contract import Described, Route
from agentrl.gateway.dialects import chat, completions
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.gateway.dialects.messages import request as messages_request
from agentrl.gateway.dialects.models import Models
from agentrl.gateway.dialects.responses import request as responses_request
from agentrl.gateway.gateway import registered_dialects
from agentrl.gateway.openapi import document
from agentrl.inference.contract import Capabilities
from agentrl.plugins import Plugins


class Tally:
    """A dialect that describes one of its two routes."""

    routes = (Route("/tally/{name:path}", ("GET", "DELETE")), Route("/tally"))

    def describe(self):
        shape = {"$ref": "#/components/schemas/Sum"}
        answer = {"description": "The sum.", "content": {"application/json": {"schema": shape}}}
        error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Fault"}}}}
        operation = {"summary": "Read a sum", "responses": {"200": answer, "default": error}}
        sum_ = {"type": "object", "properties": {"parts": {"type": "array", "items": shape}, "$ref": {"type": "null"}}}
        return {
            "paths": {"/tally/{name}": {"get": operation}},
            "components": {"schemas": {"Sum": sum_, "Fault": {"type": "string"}}},
        }


def test_it_holds_every_route_and_method_that_is_served_and_no_other():
    paths = document([ChatCompletions(), Models(), Telegraph(), Tally()])["paths"]
    served = {(path, method) for path, methods in paths.items() for method in methods}
    assert served == {
        ("/chat/completions", "post"),
        ("/models", "get"),
        ("/models/{name}", "get"),
        ("/telegraph", "post"),
        ("/offices/{office}/{line}", "get"),
        ("/tally/{name}", "get"),
        ("/tally/{name}", "delete"),
        ("/tally", "post"),
    }


def test_schemas_of_two_dialects_with_one_name_stay_apart():
    described = document([Tally(), Tally()])
    schemas = described["components"]["schemas"]
    assert set(schemas) == {"Tally.Sum", "Tally.Fault", "Tally2.Sum", "Tally2.Fault"}
    assert schemas["Tally2.Sum"]["properties"]["parts"]["items"] == {"$ref": "#/components/schemas/Tally2.Sum"}
    assert schemas["Tally.Sum"]["properties"]["$ref"] == {"type": "null"}, "a property that is called so"


def test_errors_have_the_shape_of_their_dialect_and_credentials_and_parameters_are_added():
    operation = document([Tally()])["paths"]["/tally/{name}"]["get"]
    shapes = {
        status: response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
        for status, response in operation["responses"].items()
    }
    assert shapes.pop("200") == "#/components/schemas/Tally.Sum"
    assert set(shapes) == {"400", "401", "404", "408", "409", "413", "429", "431", "500", "503"}
    assert set(shapes.values()) == {"#/components/schemas/Tally.Fault"}
    assert [(each["name"], each["in"]) for each in operation["parameters"]] == [("name", "path")]
    assert operation["security"] == [{"bearer": []}, {"apiKey": []}]


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/openapi.json"])
def test_it_is_served_to_anybody(renderer, path):
    gateway = Gateway(EngineCompleter(ScriptedBackend(renderer), Capabilities(CONTEXT, 8), renderer))
    gateway.start()
    try:
        with httpx2.Client(base_url=gateway.url, trust_env=False) as client:
            response = client.get(path)
            assert client.head(path).content == b""
            assert client.post(path).status_code == 405
    finally:
        gateway.stop()
    assert response.json()["openapi"] == "3.1.0"
    assert "/openapi.json" in response.json()["paths"]


@pytest.mark.parametrize(
    ("schema", "read"),
    [
        ("ChatCompletions.ChatRequest", chat.FIELDS),
        ("Completions.CompletionRequest", completions._FIELDS),
        ("Responses.Request", responses_request.FIELDS),
        ("Messages.Request", messages_request.FIELDS),
        ("Messages.CountRequest", messages_request.FIELDS),
    ],
)
def test_the_fields_in_it_are_those_that_are_read_and_no_others_are_allowed(schema, read):
    described = document(registered_dialects(Plugins(), pytest.fail))["components"]["schemas"][schema]
    assert set(described["properties"]) == read
    assert described["additionalProperties"] is False


def test_every_dialect_of_ours_describes_each_of_its_routes_and_every_reference_leads_somewhere():
    dialects = registered_dialects(Plugins(), pytest.fail)
    assert all(isinstance(dialect, Described) for dialect in dialects)
    described = document(dialects)
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (path, method)
            assert "content" in operation["responses"]["400"], (path, method)
    schemas = described["components"]["schemas"]

    def check(value):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            if name == "$ref":
                assert each.removeprefix("#/components/schemas/") in schemas, each
            elif isinstance(each, dict | list):
                check(each)

    check(described)
