"""What pages take from the code instead of repeating it; mkdocs calls ``on_page_markdown`` for every page."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agentrl.config.models import Config
from agentrl.config.section import Section
from agentrl.plugins import hookspecs
from agentrl.reporting.meanings import source


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``markdown`` with ``{{ configuration }}``, ``{{ hooks }}`` and ``{{ metrics }}`` replaced."""
    for mark, write in {"configuration": configuration, "hooks": hooks, "metrics": source}.items():
        if f"{{{{ {mark} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {mark} }}}}", write())
    return markdown


def configuration() -> str:
    """Every key of a config, a section a table, from the docstrings of its fields."""
    return "\n\n".join(_sections())


def _sections() -> Iterator[str]:
    single = []
    for name, field in Config.model_fields.items():
        section = _section(field)
        if section is None:
            single.append(_row(name, field))
        else:
            rows = [_row(f"{name}.{key}", inner) for key, inner in section.model_fields.items()]
            about = f"{_text(field.description)}\n\n" if field.description else ""
            yield f"## {name}\n\n{about}{_table(rows)}"
    yield f"## Other keys\n\n{_table(single)}"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if inspect.isclass(kind) and issubclass(kind, Section) else None


def _table(rows: list[str]) -> str:
    return "\n".join(["| Key | Default | Meaning |", "|---|---|---|", *rows])


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {_default(field)} | {_text(field.description)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, list):
        value = f"[{', '.join(str(_name(each)) for each in value)}]"
    return "`null`" if value is None else f"`{_name(value)}`"


def _name(value: Any) -> Any:
    """A part as its name alone."""
    if not isinstance(value, BaseModel):
        return value
    written = value.model_dump()
    if not isinstance(written, dict):
        return written
    name = written.get("name", written.get("type"))
    return f"{{{', '.join(f'{key}: {inner}' for key, inner in written.items())}}}" if name is None else name


def _text(description: str | None) -> str:
    return " ".join((description or "").split()).replace("|", "\\|")


def hooks() -> str:
    """Every hook with its arguments and what its docstring says, in the order in which a run calls them."""
    rows = ["| Hook | When it is called, and what it may do |", "|---|---|"]
    for name, hook in vars(hookspecs).items():
        if name.startswith("agentrl_"):
            arguments = ", ".join(inspect.signature(hook).parameters)
            rows.append(f"| `{name}({arguments})` | {_text(inspect.getdoc(hook))} |")
    return "\n".join(rows)
