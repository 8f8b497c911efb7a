"""What a judge has cost, held against its budget; kept in the run's folder, so that a resumed run goes on counting."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from agentrl.errors import AgentRLError, BudgetError, RewardError, cannot_write
from agentrl.rewards.judging.settings import BudgetSection

__all__ = ["Spending", "write_whole"]


class Spending:
    """Counts the requests and tokens of a judge."""

    def __init__(self, budget: BudgetSection) -> None:
        self._budget = budget
        self._file: Path | None = None
        self.requests = 0
        self.tokens = 0

    def keep_in(self, file: Path) -> None:
        """Go on from what ``file`` holds, and keep it up to date. Raises ``RewardError`` where it is unreadable."""
        self._file = file
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.requests, self.tokens = int(kept["requests"]), int(kept["tokens"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RewardError(
                f"{file} does not tell what the judge has cost: {error}", fix="remove it to count anew"
            ) from error

    def begin_request(self) -> None:
        """Count a request that is about to be made.

        Raises ``BudgetError``, or ``RewardError`` with ``when_spent: fail``, where the budget is spent.
        """
        spent = self._spent("requests", self.requests) or self._spent("tokens", self.tokens)
        if spent is not None:
            raise spent
        self.requests += 1
        self._write()

    def end_request(self, usage: object) -> None:
        """Count the tokens of an answer by what the endpoint says of them.

        Raises ``RewardError`` where it says nothing, and tokens are limited.
        """
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(total, int) and not isinstance(total, bool) and total >= 0:
            self.tokens += total
            self._write()
        elif self._budget.tokens is not None:
            raise RewardError(
                "the judge's endpoint does not say how many tokens a verdict took, so budget.tokens cannot be kept",
                fix="limit budget.requests instead",
            )

    def _spent(self, what: str, count: int) -> AgentRLError | None:
        limit = getattr(self._budget, what)
        if limit is None or count < limit:
            return None
        kind = BudgetError if self._budget.when_spent == "stop" else RewardError
        return kind(
            f"the judge's budget is spent: {count} {what} of budget.{what}={limit}",
            fix=f"raise budget.{what} of the reward",
            fingerprint="the judge's budget is spent",
        )

    def _write(self) -> None:
        if self._file is not None:
            write_whole(self._file, json.dumps({"requests": self.requests, "tokens": self.tokens}))


def write_whole(file: Path, text: str) -> None:
    """Write ``file``, whole or not at all whoever else reads or writes it. Raises ``RunError`` where that fails."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with open(handle, "w", encoding="utf-8") as opened:
                opened.write(text)
            os.replace(name, file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(file, error) from error
