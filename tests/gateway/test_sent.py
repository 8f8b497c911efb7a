"""The conversation in a recorded request is read alike, whichever protocol it came in."""

from __future__ import annotations

import pytest

from agentrl.gateway.dialects.sent import sent_messages

SYSTEM = {"role": "system", "content": "Calculate."}
USER = {"role": "user", "content": "12?"}
CALL = {"id": "c", "type": "function", "function": {"name": "double", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("request_body", "messages"),
    [
        ({"messages": [SYSTEM, USER]}, [SYSTEM, USER]),
        ({"system": "Calculate.", "messages": [USER]}, [SYSTEM, USER]),
        ({"instructions": "Calculate.", "input": "12?"}, [SYSTEM, USER]),
        (
            {
                "input": [
                    USER,
                    {"type": "reasoning", "summary": [], "encrypted_content": "x"},
                    {"type": "function_call", "call_id": "c", "name": "double", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "24"},
                    {"type": "item_reference", "id": "msg_1"},
                ]
            },
            [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c", "content": "24"}],
        ),
        ({"previous_response_id": "resp_1"}, []),
        ({"prompt": "12?"}, [USER]),
        ({"input": [3]}, []),
        ({"text": "12?"}, []),
    ],
)
def test_messages_come_first_to_last(request_body, messages):
    assert sent_messages(request_body) == messages
