"""The section ``prices``: what tokens and time cost, so that a run can say what it costs in money."""

from __future__ import annotations

from pydantic import Field

from agentrl.config.section import Section

__all__ = ["PricesSection", "TokenPrice"]


class TokenPrice(Section):
    """Money for a million tokens of each kind."""

    prompt: float = Field(0.0, ge=0)
    """Of a prompt."""
    cached: float | None = Field(None, ge=0)
    """Of a prompt, where the endpoint says that it had them already. Null takes the price of the prompt."""
    completion: float = Field(0.0, ge=0)
    """Of a completion, thinking included."""


class PricesSection(Section):
    currency: str = "USD"
    """The currency of all prices, as a label."""
    tokens: dict[str, TokenPrice] = Field({})
    """Prices of a million tokens, `{prompt: 0.15, cached: 0.075, completion: 0.6}`, by the name of a model, such as
    `gpt-4o-mini`, or by a role: `policy`, `judge`, `teacher` or `other`. The price of a model goes before that of its
    role. A policy without a price costs the time of its machine alone."""
    machine_hour: float | None = Field(None, ge=0)
    """Money for an hour of the machine. Null counts none."""
    gpu_hour: float | None = Field(None, ge=0)
    """Money for an hour of one GPU, beside `prices.machine_hour`. Null counts none."""
    gpus: int = Field(1, ge=1)
    """How many GPUs are paid for while the run goes on."""

    @property
    def known(self) -> bool:
        """Whether there is any price, so that money is counted."""
        return bool(self.tokens) or self.machine_hour is not None or self.gpu_hour is not None
