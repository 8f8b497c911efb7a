"""A meter that keeps account in the simplest way, for tests of those that report to one."""

from __future__ import annotations

from collections import defaultdict

from agentrl.costs.contract import Role, Stage, Usage


class Accounts:
    """What was used, by stage, role and model."""

    def __init__(self) -> None:
        self.used: dict[tuple[Stage, Role, str], Usage] = defaultdict(lambda: Usage(requests=0))

    def spend(self, stage: Stage, role: Role, model: str, usage: Usage) -> None:
        self.used[stage, role, model] += usage

    def counts(self, stage: Stage, role: Role, model: str) -> tuple[int, int, int, int]:
        """Requests, those of unknown usage, and the tokens of prompts and of completions."""
        used = self.used[stage, role, model]
        return used.requests, used.unknown, used.prompt_tokens, used.completion_tokens
