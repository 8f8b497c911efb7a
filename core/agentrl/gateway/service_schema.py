"""What the session service says of itself in the OpenAPI document; the reading code is in ``service``."""

from __future__ import annotations

from typing import Any

__all__ = ["description"]

_ADMIN: list[dict[str, list[str]]] = [{"adminBearer": []}, {"adminKey": []}]
_EITHER: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}, *_ADMIN]
_ADMIN_KEY = "The admin key of the service."
_COUNT = {"type": "integer", "minimum": 0}


def _null_or(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT = {"type": "string"}
_NAME = _null_or({"type": "string", "minLength": 1, "maxLength": 200})
_REWARDS = {"type": "object", "additionalProperties": {"type": "number"}}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = (), *, description: str = "") -> dict[str, Any]:
    """An object that has these fields and no others."""
    told = {"description": description} if description else {}
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **told}


_SESSION_FIELDS: dict[str, Any] = {
    "id": _TEXT,
    "object": {"const": "session"},
    "state": {"enum": ["open", "closed", "expired", "stopped"]},
    "training": {"type": "boolean"},
    "group": _null_or(_TEXT),
    "metadata": {"type": "object"},
    "created": {"type": "integer", "description": "Seconds since the epoch."},
    "expires": _null_or({"type": "integer", "description": "Seconds since the epoch, where nobody uses it."}),
    "episode": {"type": "string", "description": "Its key in the run's episode store."},
    "calls": _COUNT,
    "in_flight": _COUNT,
    "prompt_tokens": _COUNT,
    "completion_tokens": _COUNT,
    "reward": _null_or({"type": "number"}),
    "call_rewards": _REWARDS,
    "outcome": _null_or({"enum": ["rewarded", "rejected", "failed"]}),
    "failure": _null_or(_TEXT),
}
_SAMPLED = _object(
    {
        "call": _TEXT,
        "logprobs": {"type": "array", "items": _null_or({"type": "number"})},
        "versions": {"type": "array", "items": {"type": "integer"}},
        "temperature": {"type": "number"},
        "constrained": {"type": "boolean"},
    },
    description="How the tokens were sampled. Absent for given ones.",
)
_SCHEMAS: dict[str, Any] = {
    "NewSession": _object(
        {
            "training": _null_or(
                {
                    "type": "boolean",
                    "default": True,
                    "description": "Whether what is sampled may be trained on; then fields that would make its "
                    "log-probabilities wrong are refused.",
                }
            ),
            "group": {**_NAME, "description": "Sessions with one group are compared with each other."},
            "metadata": _null_or({"type": "object", "description": "Is stored with the episode."}),
        },
        ("training", "group", "metadata"),
    ),
    "Session": _object(_SESSION_FIELDS),
    "OpenedSession": _object({**_SESSION_FIELDS, "base_url": _TEXT, "api_key": _TEXT}),
    "Sessions": _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Session"}},
            "counts": _object(dict.fromkeys(("open", "opened", "closed", "expired"), _COUNT)),
        }
    ),
    "NewReward": _object(
        {
            "reward": {"type": ["number", "boolean"]},
            "call": {**_NAME, "description": "A response id, or `last`; the whole episode where it is left out."},
            "parts": _null_or({"type": "object", "additionalProperties": {"type": ["number", "boolean"]}}),
        },
        ("call", "parts"),
    ),
    "Reward": _object(
        {
            "object": {"const": "reward"},
            "session": _TEXT,
            "call": _null_or(_TEXT),
            "reward": {"type": "number"},
            "previous": _null_or({"type": "number", "description": "The reward that this one replaces."}),
        }
    ),
    "Closing": _object(
        {
            "failure": _null_or(
                {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 2000,
                    "description": "Why the episode failed around the model; it then trains nothing.",
                }
            )
        },
        ("failure",),
    ),
    "ClosingGroup": _object(
        {
            "group": {
                "type": "string",
                "minLength": 1,
                "maxLength": 200,
                "description": "Sessions that are opened with this name from now on are of another group.",
            }
        }
    ),
    "Group": _object({"object": {"const": "group"}, "group": _TEXT, "sessions": _COUNT, "open": _COUNT}),
    "Call": _object(
        {
            "id": _TEXT,
            "parent": _null_or(_TEXT),
            "request": {"type": "object"},
            "message": {"type": "object"},
            "finish_reason": _TEXT,
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "fork_reason": _null_or(_TEXT),
            "delivered": {"type": "boolean"},
            "seconds": {"type": "number"},
            "reward": _null_or({"type": "number"}),
        }
    ),
    "Span": _object(
        {
            "parent": {"type": "integer", "minimum": -1},
            "fork": _COUNT,
            "ids": {"type": "array", "items": {"type": "integer"}},
            "sampled": _SAMPLED,
        },
        ("sampled",),
        description="Token ids that follow the first `fork` ids of the span number `parent`, or nothing at -1.",
    ),
    "Calls": _object(
        {
            "object": {"const": "session.calls"},
            "calls": {"type": "array", "items": {"$ref": "#/components/schemas/Call"}},
            "spans": {"type": "array", "items": {"$ref": "#/components/schemas/Span"}},
        }
    ),
    "Error": _object(
        {
            "error": _object(
                {"message": _TEXT, "type": _TEXT, "param": _null_or(_TEXT), "code": _TEXT},
            )
        }
    ),
}
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The session's id, or `current` for the one whose key the request has.",
    "schema": {"type": "string", "minLength": 1, "pattern": "^[^/]+$"},
}


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _operation(
    summary: str,
    answer: str,
    *,
    body: str = "",
    status: str = "200",
    required: bool = False,
    security: list[dict[str, list[str]]] = _EITHER,
    by_id: bool = True,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "security": security}
    if by_id:
        operation["parameters"] = [_ID]
    if body:
        operation["requestBody"] = {"required": required, "content": _content(body)}
    answered = {"description": summary + ".", "content": _content(answer)}
    return {**operation, "responses": {status: answered, "default": {"content": _content("Error")}}}


def description() -> dict[str, Any]:
    """The paths and schemas of the session service, as ``Dialect.describe`` gives them."""
    return {
        "paths": {
            "/sessions": {
                "post": _operation(
                    "Open a session", "OpenedSession", body="NewSession", status="201", security=_ADMIN, by_id=False
                ),
                "get": _operation("List the open sessions", "Sessions", security=_ADMIN, by_id=False),
            },
            "/sessions/{id}": {"get": _operation("Read a session", "Session")},
            "/sessions/{id}/calls": {"get": _operation("Read the calls and tokens of a session", "Calls")},
            "/sessions/{id}/rewards": {
                "post": _operation("Reward a call or the episode", "Reward", body="NewReward", required=True)
            },
            "/sessions/{id}/close": {"post": _operation("Close a session", "Session", body="Closing")},
            "/groups/close": {
                "post": _operation(
                    "Let no session join a group any more",
                    "Group",
                    body="ClosingGroup",
                    required=True,
                    security=_ADMIN,
                    by_id=False,
                )
            },
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "adminBearer": {"type": "http", "scheme": "bearer", "description": _ADMIN_KEY},
                "adminKey": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": _ADMIN_KEY},
            },
        },
    }
