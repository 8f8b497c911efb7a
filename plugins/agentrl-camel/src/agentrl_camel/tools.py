"""Tools that cost less: CAMEL checks a tool's schema whenever it is looked at, which is in every call of the model."""

from __future__ import annotations

import copy
from typing import Any

from camel.toolkits import FunctionTool

__all__ = ["checked_once"]


def checked_once(tool: FunctionTool) -> FunctionTool:
    """A copy of ``tool`` whose schema has been checked. Raises what CAMEL raises for one that is wrong."""
    schema: dict[str, Any] = tool.get_openai_tool_schema()
    checked = copy.copy(tool)
    checked.get_openai_tool_schema = lambda: schema  # type: ignore[method-assign]
    checked.get_function_name = lambda: schema["function"]["name"]  # type: ignore[method-assign]
    return checked
