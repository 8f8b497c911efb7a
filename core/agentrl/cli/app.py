"""What every verb is given: the global options, and the plugins that they leave."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agentrl.environ import DEBUG

if TYPE_CHECKING:
    from agentrl.plugins.manager import Plugins

__all__ = ["App"]


class App:
    """The state of one command line; a verb receives it with ``click.pass_obj``."""

    def __init__(self) -> None:
        self.debug = bool(os.environ.get(DEBUG))
        """Whether an error shows its traceback."""
        self._disabled: tuple[str, ...] = ()
        self._plugins: Plugins | None = None

    @property
    def plugins(self) -> Plugins:
        """The installed plugins, less those of ``-p no:NAME`` and ``AGENTRL_DISABLE_PLUGINS``."""
        if self._plugins is None:
            from agentrl.environments.known import entries_elsewhere
            from agentrl.plugins.manager import Plugins

            self._plugins = Plugins(self._disabled, elsewhere=entries_elsewhere)
        return self._plugins

    @property
    def disabled(self) -> tuple[str, ...]:
        """The names of ``-p no:NAME``."""
        return self._disabled

    def disable(self, names: tuple[str, ...]) -> None:
        """Leave out plugins beside those that are left out already."""
        if names:
            self._disabled += names
            self._plugins = None
