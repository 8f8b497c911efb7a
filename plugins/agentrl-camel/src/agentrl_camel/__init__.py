"""Trains CAMEL's agents with agentrl, unchanged.

``hooks`` recognises them, and ``adapter`` holds the agentrl agents that they become. An agent of your own that uses
CAMEL takes its models from a ``policy.Policy`` and its answer from ``conversation.converse``, as the examples in
``math`` and ``society`` do. Importing this package, or its hooks, imports nothing of CAMEL.
"""

from __future__ import annotations

import logging
import os

__all__: list[str] = []

if not {"CAMEL_LOGGING_LEVEL", "CAMEL_LOGGING_DISABLED"} & os.environ.keys():
    # Where it finds no handler, CAMEL has Python's root logger print on stdout as soon as it is imported.
    logging.getLogger("camel").addHandler(logging.NullHandler())
