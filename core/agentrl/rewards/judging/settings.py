"""The keys of rewards that a language model gives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from agentrl.config.section import Section
from agentrl.inference.openai.endpoint import base_url, key_variable, variable_name

__all__ = ["BudgetSection", "JudgeSettings", "RankedJudgeSettings"]


class BudgetSection(Section):
    """What a judge may cost in one run, the parts before it was resumed included."""

    requests: int | None = Field(None, ge=0)
    """Most requests, those that are tried again included. Null sets no limit."""
    tokens: int | None = Field(None, ge=0)
    """Tokens, of prompts and verdicts as the endpoint counts them, after which nothing more is asked. Requests under
    way then are let through, so that it may be exceeded by theirs. Null sets no limit."""
    when_spent: Literal["stop", "fail"] = "stop"
    """What happens when an answer is to be judged and the budget is spent: `stop` ends the run with an error, after
    which it can be resumed with a larger budget; `fail` fails the episode, which is counted and not trained."""


class JudgeSettings(Section):
    """Keys of `judge`."""

    rubric: str = Field(min_length=1)
    """What makes a good answer, in words for the judge."""
    model: str = Field(min_length=1)
    """The endpoint's name of the model that judges."""
    url: Annotated[str, AfterValidator(base_url)] = "https://api.openai.com/v1"
    """Base URL of an endpoint of the chat completions API, up to what comes before `/chat/completions`."""
    api_key_env: Annotated[str | None, AfterValidator(variable_name)] = None
    """The environment variable that holds the endpoint's key; null for an endpoint that asks for none. By default
    `OPENAI_API_KEY` for OpenAI's own endpoint, and null for any other."""
    fields: list[str] | None = None
    """The fields of the task that the judge is shown. Null shows all of them, a truth among them included."""
    show: Literal["answer", "conversation"] = "answer"
    """What the judge is shown beside the task: the agent's `answer`, or also the `conversation` with the model that led
    to it, as the last request and its completion hold it."""
    scale: int = Field(10, ge=1)
    """The judge's highest score. The reward is the score divided by it, so that it lies between 0 and 1."""
    format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the verdict's form is asked for: by a JSON schema that the endpoint enforces, as any JSON object, or in words
    alone, for endpoints that know neither. What does not have the form is no verdict in any case."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature of the judge. Null sends none, for models that take no other than their own."""
    max_tokens: int | None = Field(1024, ge=1)
    """Most tokens of a verdict, the judge's thinking included. Null sends no limit."""
    concurrency: int = Field(16, ge=1)
    """Most requests to the endpoint at the same time."""
    timeout: float = Field(120, gt=0)
    """Seconds that one verdict may take once it is asked for, all tries and pauses included."""
    max_retries: int = Field(5, ge=0)
    """How often a verdict is asked for again after 408, 409, 429, a 5xx, a broken connection or a malformed verdict. A
    `Retry-After` is obeyed, by all requests to the endpoint; without one the pauses grow."""
    cache: str | None = "run"
    """Where verdicts are kept, so that nothing is asked twice: `run` for the run's folder, a path for a folder that
    several runs share, null for nowhere. A verdict is found again for the same question to the same model at the same
    URL under the same settings."""
    budget: BudgetSection = Field({}, validate_default=True)
    """What the judge may cost in one run."""

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key; ``None`` where no key is sent."""
        return key_variable(self.url, self.api_key_env, is_said="api_key_env" in self.model_fields_set)


class RankedJudgeSettings(JudgeSettings):
    """Keys of `ranked-judge`."""

    orders: int = Field(2, ge=1, le=16)
    """How often a group is ranked, each time in another order; the reward is of the mean rank. Orders come in pairs, of
    which the second is the first reversed, so that a judge that prefers earlier or later places gains nothing."""
    seed: int = Field(0, ge=0)
    """Seed of the orders in which the judge is shown the answers."""
