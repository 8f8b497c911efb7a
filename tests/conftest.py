"""What several test folders share: the bundled model, and a chat tokenizer small enough to be trained on the spot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# The models of tests are so small that threads wait for each other more than they compute, and test processes share the
# processors. It is read as torch is imported, here and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from tests.warm import WarmInterpreter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentrl.config.models import ModelSection
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins

# A busy machine is no failure.
hypothesis.settings.register_profile("agentrl", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("agentrl")

# Ignored where the tests run in the background (`make test &`, `nohup make test`); what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SLOW = {
    "conformance/test_anthropic_agent.py",
    "cli/test_serve.py",
    "cli/test_watch.py",
    "cli/test_view.py",
    "conformance/test_bundled_agents.py",
    "doctor/test_examination.py",
    "gateway/test_fuzzing.py",
    "gateway/test_memory.py",
    "hosting/test_local.py",
    "learner/test_ranks.py",
    "reporting/test_tracked_run.py",
    "reporting/test_wandb.py",
    "rollout/test_carriers.py",
    "rollout/test_limits.py",
    "rollout/test_subproc_faults.py",
    "test_agent_workflow.py",
    "test_distributions.py",
    "test_documentation.py",
    "test_extras.py",
    "test_online_example.py",
    "testing/test_agent_suite.py",
    "testing/test_backend_suite.py",
    "training/test_columns.py",
    "training/test_adapter_runs.py",
    "training/test_deadlines.py",
    "training/test_interrupts.py",
    "training/test_judged_runs.py",
    "training/test_ranked_learner.py",
    "training/test_ranked_runs.py",
    "training/test_resume.py",
    "training/test_offline.py",
    "training/test_presets.py",
    "training/test_proof.py",
    "training/test_rescoring.py",
    "training/test_sft.py",
    "training/test_rollback.py",
    "training/test_online.py",
    "training/test_staleness_bound.py",
    "training/test_synchronous.py",
    "training/test_trained.py",
    "training/test_teachers.py",
    "training/test_sharing.py",
    "training/test_what_went_wrong.py",
    "training/test_worker_runs.py",
    "view/test_episode_pages.py",
}
"""Modules whose tests train whole runs, start processes, install or send requests by the hundred: ``make check`` leaves
them to ``make test``."""


LONG = {"scaffold/test_generated.py"}
"""Modules that take minutes together: ``make acceptance`` runs them, with the other tests that are marked long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--short", action="store_true", help="of a long test that is run with several parameters, run the first only"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    assert all((here / name).exists() for name in SLOW | LONG), "a module of SLOW or LONG is not there"
    for item in items:
        name = str(item.path.relative_to(here))
        if name in SLOW | LONG or item.get_closest_marker("long") is not None:
            item.add_marker(pytest.mark.slow)
        if name in LONG:
            item.add_marker(pytest.mark.long)
    if config.getoption("--short"):
        items[:] = _without_repeats(items)


def _without_repeats(items: list[pytest.Item]) -> list[pytest.Item]:
    """The items without those of a long test whose function stands before them already."""
    seen: set[str] = set()
    kept = []
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function not in seen or item.get_closest_marker("long") is None:
            kept.append(item)
        if item.get_closest_marker("long") is not None:
            seen.add(function)
    return kept


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
TEXTS = [
    "What is 12 * 34? It is 408. The sum of 57 and 28 is 85. Let me see: first multiply, then check the answer.",
    'You are a helpful assistant. {"name": "calculate", "arguments": {"expression": "12 * 34"}} error: not found',
]

QWEN3_TEMPLATE = """
{%- set state = namespace(last_query=messages|length - 1) -%}
{%- for m in messages -%}
  {%- if m.role == 'user' and not m.content.strip().startswith('<tool_response>') -%}
    {%- set state.last_query = loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{%- if tools -%}
  {{- '<|im_start|>system\\n' -}}{%- if system is not none -%}{{- system + '\\n\\n' -}}{%- endif -%}
  {{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
  {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
  {%- for tool in tools -%}{{- '\\n' -}}{{- tool|tojson -}}{%- endfor -%}
  {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
  {{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": ' -}}
  {{- '<args-json-object>}\\n</tool_call><|im_end|>\\n' -}}
{%- elif system is not none -%}
  {{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
  {%- elif m.role == 'assistant' -%}
    {%- set part = namespace(content=m.content or '', thought=m.reasoning_content or '') -%}
    {%- if not part.thought and '</think>' in part.content -%}
      {%- set part.thought = part.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
      {%- set part.content = part.content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if loop.index0 > state.last_query and (loop.last or part.thought) -%}
      {{- '<think>\\n' + part.thought.strip('\\n') + '\\n</think>\\n\\n' + part.content.lstrip('\\n') -}}
    {%- else -%}{{- part.content -}}{%- endif -%}
    {%- for call in m.tool_calls or [] -%}
      {%- if part.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
      {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
      {%- if call.function.arguments is string -%}{{- call.function.arguments -}}
      {%- else -%}{{- call.function.arguments|tojson -}}{%- endif -%}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- elif m.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def train_tokenizer(template: str | None = QWEN3_TEMPLATE, *, marks: list[str] = MARKS) -> PreTrainedTokenizerFast:
    """A byte-level BPE with real merges, so that a text has several splits, in Qwen3's conversation format."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with Qwen3's special tokens and a template that writes what Qwen3's does."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Trains such a tokenizer with another template, or without one."""
    return train_tokenizer


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The folder of the bundled model ``tiny``."""
    return find_model(Plugins(), ModelSection(name="tiny"))


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmInterpreter]:
    """Starts processes of ``agentrl`` without the seconds that an interpreter takes to import torch."""
    interpreter = WarmInterpreter(tmp_path_factory.mktemp("warm"))
    yield interpreter
    interpreter.close()


@pytest.fixture
def warm_hosts(warm: WarmInterpreter, tmp_path: Path) -> Iterator[Path]:
    """Has hosts that this process starts begin warm as well; the file that tells their ids."""
    with warm.hosting(tmp_path / "started"):
        yield tmp_path / "started"
