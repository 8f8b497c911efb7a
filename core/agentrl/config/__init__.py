"""The configuration of a run: typed sections, and a loader that knows where every value came from.

::

    config = load_config("config.yaml", "training.steps=100")

Values come from the command line (``key.sub=value``), the environment (``AGENTRL_ROLLOUT__GROUP_SIZE=4``), a
YAML file and the defaults, the first one winning. Mappings are merged key by key: ``algorithm=dapo`` replaces
what lower sources say about the algorithm, ``algorithm.name=dapo`` changes its name and keeps its keys.
``models`` holds every key with its help. ``resolve_config`` also says where each value was written,
``dump_yaml`` writes a configuration down so that it reads back equal, ``check_trainable`` refuses what cannot
learn, and ``ineffective_keys`` finds settings that would change nothing. What is wrong is a ``ConfigError`` of
one line: the place, the key, the value, what was expected, and the fix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl._lazy import attributes

if TYPE_CHECKING:
    from agentrl.config.checks import check_trainable
    from agentrl.config.ineffective import (
        Ineffective,
        ineffective_keys,
        unused_by_evaluation,
        unused_by_imitation,
        unused_by_replay,
        unused_by_serving,
    )
    from agentrl.config.loader import Resolved, dump_yaml, load_config, resolve_config
    from agentrl.config.models import Config

__all__ = [
    "Config",
    "Ineffective",
    "Resolved",
    "check_trainable",
    "dump_yaml",
    "ineffective_keys",
    "load_config",
    "resolve_config",
    "unused_by_evaluation",
    "unused_by_imitation",
    "unused_by_replay",
    "unused_by_serving",
]

__getattr__, __dir__ = attributes(
    __name__,
    {
        "agentrl.config.ineffective": [
            "Ineffective",
            "ineffective_keys",
            "unused_by_evaluation",
            "unused_by_imitation",
            "unused_by_replay",
            "unused_by_serving",
        ],
        "agentrl.config.loader": ["Resolved", "dump_yaml", "load_config", "resolve_config"],
        "agentrl.config.checks": ["check_trainable"],
        "agentrl.config.models": ["Config"],
    },
)
