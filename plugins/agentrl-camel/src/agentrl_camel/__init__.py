"""Trains CAMEL's agents with agentrl, unchanged.

``recognition`` tells them, ``adapter`` is what they become. An agent of your own that uses CAMEL takes its models
from a ``Policy`` (in ``policy``) and its answer from ``converse`` (in ``conversation``), as those of this package
do. Importing the package, or its hooks, imports nothing of CAMEL.
"""

from __future__ import annotations

import logging
import os

__all__: list[str] = []

if not {"CAMEL_LOGGING_LEVEL", "CAMEL_LOGGING_DISABLED"} & os.environ.keys():
    # Where it finds no handler, CAMEL has Python's root logger print on stdout as soon as it is imported.
    logging.getLogger("camel").addHandler(logging.NullHandler())
