"""The normaliser ``plugin-name``: what changes from request to request in a system
prompt, and what the model reads in its place.

What a rule owes to a run is written in ``agentrl.gateway.contract``.
"""

from __future__ import annotations

import re

from pydantic import BaseModel

NUMBER = re.compile(r"(?<=Session )\d+")


class PluginNameNormaliser:
    """Writes one text for the number in ``Session 4711``.

    It is built once a run, and called with the whole text of every system message.
    """

    class Settings(BaseModel):
        """The keys beside the name of the rule."""

        replacement: str = "?"
        """What the model reads instead of the number."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, text: str) -> str:
        return NUMBER.sub(lambda _: self.settings.replacement, text)
