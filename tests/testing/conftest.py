"""Runs a suite in a pytest inside this one, and says which of its tests failed."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_NUMBERS = itertools.count()

Failures = Callable[..., dict[str, str]]


@dataclass
class Recorder:
    """A plugin of the inner pytest."""

    ran: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "setup"
        name = report.nodeid.split("::")[-1].split("[")[0]
        if report.failed:
            self.failed.setdefault(name, report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.setdefault("collection", report.longreprtext)


@pytest.fixture
def failures(tmp_path: Path) -> Failures:
    """``failures(suite, attributes, select)``: by the name of each test that failed, the message of its first failure.

    ``attributes`` are those of the subclass, as source; ``select`` is pytest's ``-k``. Something has to be selected.
    """

    def failures(suite: str, attributes: str, select: str = "") -> dict[str, str]:
        lines = "\n".join(f"    {line}" for line in attributes.splitlines())
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        module = f"test_broken_{next(_NUMBERS)}"  # A module's name is imported once only.
        (tmp_path / f"{module}.py").write_text(
            f"from agentrl.testing import {suite}\n"
            "from tests.testing import broken_agents, broken_backends, broken_dialects\n"
            "from tests.testing import broken_rewards, broken_task_sets\n"
            'pytest_plugins = ["agentrl.testing"]\n\n'
            f"class TestBroken({suite}):\n{lines}\n"
        )
        recorder = Recorder()
        options = [
            "-q",
            "--disable-plugin-autoload",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            "-c",
            str(tmp_path / "pytest.ini"),
        ]
        gc.freeze()  # The inner pytest collects garbage as it ends, several times; nothing older is its own.
        try:
            pytest.main([*options, "-k", select, str(tmp_path / f"{module}.py")], plugins=[recorder])
        finally:
            gc.unfreeze()
        assert recorder.ran
        return recorder.failed

    return failures
