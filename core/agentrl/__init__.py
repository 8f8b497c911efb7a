"""Train any LLM agent by reinforcement learning, by its registered name, without changing the agent.

::

    from agentrl import Trainer, load_config

    with Trainer(load_config("config.yaml", "training.steps=100")) as trainer:
        summary = trainer.train(agent="math")

Every name here is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl._lazy import attributes

if TYPE_CHECKING:
    from agentrl.agents.contract import AgentWorkflow
    from agentrl.agents.result import Reward
    from agentrl.config.loader import load_config
    from agentrl.config.models import Config
    from agentrl.config.section import Settings
    from agentrl.environments.environment import environment_of, find_environment
    from agentrl.errors import (
        AgentError,
        AgentRLError,
        BackendError,
        ConfigError,
        EpisodeTimeout,
        GatewayError,
        HostLostError,
        PluginError,
        PolicyError,
        PromptTooLong,
        RewardError,
        RunError,
        RunFolderError,
        UnsupportedSampling,
        WorkerError,
    )
    from agentrl.inference.digests import tensor_digest
    from agentrl.loops import finish_in_thread, run_in_thread
    from agentrl.plugins.hookspecs import hookimpl
    from agentrl.plugins.manager import Plugins
    from agentrl.redaction import redact
    from agentrl.rollout.subproc.executor import SubprocRunner, inspect_agent
    from agentrl.rollout.subproc.interpreter import AgentLaunch, diagnose, worker_environment
    from agentrl.rollout.subproc.local import LocalCarrier, LocalProcess
    from agentrl.runs.reader import open_run
    from agentrl.training.trainer import Trainer

__all__ = [
    "AgentError",
    "AgentLaunch",
    "AgentRLError",
    "AgentWorkflow",
    "BackendError",
    "Config",
    "ConfigError",
    "EpisodeTimeout",
    "GatewayError",
    "HostLostError",
    "LocalCarrier",
    "LocalProcess",
    "PluginError",
    "Plugins",
    "PolicyError",
    "PromptTooLong",
    "Reward",
    "RewardError",
    "RunError",
    "RunFolderError",
    "Settings",
    "SubprocRunner",
    "Trainer",
    "UnsupportedSampling",
    "WorkerError",
    "diagnose",
    "environment_of",
    "find_environment",
    "finish_in_thread",
    "hookimpl",
    "inspect_agent",
    "load_config",
    "open_run",
    "redact",
    "run_in_thread",
    "tensor_digest",
    "worker_environment",
]

__getattr__, __dir__ = attributes(
    __name__,
    {
        "agentrl.agents.contract": ["AgentWorkflow"],
        "agentrl.agents.result": ["Reward"],
        "agentrl.config.loader": ["load_config"],
        "agentrl.config.models": ["Config"],
        "agentrl.config.section": ["Settings"],
        "agentrl.environments.environment": ["environment_of", "find_environment"],
        "agentrl.errors": [name for name in __all__ if name.endswith("Error")]
        + ["EpisodeTimeout", "PromptTooLong", "UnsupportedSampling"],
        "agentrl.inference.digests": ["tensor_digest"],
        "agentrl.loops": ["finish_in_thread", "run_in_thread"],
        "agentrl.plugins.hookspecs": ["hookimpl"],
        "agentrl.plugins.manager": ["Plugins"],
        "agentrl.redaction": ["redact"],
        "agentrl.rollout.subproc.executor": ["SubprocRunner", "inspect_agent"],
        "agentrl.rollout.subproc.interpreter": ["AgentLaunch", "diagnose", "worker_environment"],
        "agentrl.rollout.subproc.local": ["LocalCarrier", "LocalProcess"],
        "agentrl.runs.reader": ["open_run"],
        "agentrl.training.trainer": ["Trainer"],
    },
)
