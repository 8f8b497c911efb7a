"""Environment variables that agentrl reads for itself.

Every other variable that begins with ``AGENTRL_`` sets a configuration key; see ``agentrl.config``.
"""

from __future__ import annotations

ADMIN_KEY = "AGENTRL_ADMIN_KEY"
"""The key that opens and lists the sessions of ``agentrl serve``."""

DEBUG = "AGENTRL_DEBUG"
"""Anything but empty: the command line shows the traceback of an error."""

DISABLE_PLUGINS = "AGENTRL_DISABLE_PLUGINS"
"""Plugins that are not used, separated by commas; what ``-p no:NAME`` takes."""

ENVIRONMENTS = "AGENTRL_ENVIRONMENTS"
"""The folder of the environments that ``agentrl env create`` makes, where it is not the user's data folder."""

TEST_DATA = "AGENTRL_TEST_DATA"
"""Where the test suite finds real data sets."""

VIEW_TOKEN = "AGENTRL_VIEW_TOKEN"  # noqa: S105 - The name of the variable, not its value.
"""What a browser has to know that opens the pages of ``agentrl view``."""

WORKER = "AGENTRL_WORKER"
"""Set in an agent's process, and so in all that it starts: a word by which they are found when it is killed."""

PREFIX = "AGENTRL_"

RESERVED = frozenset({ADMIN_KEY, DEBUG, DISABLE_PLUGINS, ENVIRONMENTS, TEST_DATA, VIEW_TOKEN, WORKER})
"""Names below ``PREFIX`` that are no configuration keys."""
