"""Which environment variables an agent's process gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentrl.errors import ConfigError
from agentrl.rollout.subproc.interpreter import worker_environment

HERE = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "LC_ALL": "C",
    "XDG_CACHE_HOME": "/cache",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": "/mine",
    "AGENTRL_DISABLE_PLUGINS": "camel",
    "OPENAI_API_KEY": "sk-real",
    "HF_TOKEN": "hf_real",
    "AWS_SECRET_ACCESS_KEY": "real",
    "HTTPS_PROXY": "http://user:password@proxy",
    "SSH_AUTH_SOCK": "/agent",
    "AGENTRL_SEED": "3",
}


def test_only_harmless_variables_are_inherited():
    given = worker_environment([], HERE)
    kept = ("PATH", "HOME", "LC_ALL", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "PYTHONPATH", "AGENTRL_DISABLE_PLUGINS")
    assert given == {name: HERE[name] for name in kept} | {"PYTHONUNBUFFERED": "1"}


def test_another_interpreter_is_not_led_to_the_packages_of_this_one():
    assert "PYTHONPATH" not in worker_environment([], HERE, python=Path("/other/bin/python"))
    assert worker_environment(["PYTHONPATH"], HERE, python=Path("/other/bin/python"))["PYTHONPATH"] == "/mine"
    assert worker_environment([], HERE, python=Path(sys.executable))["PYTHONPATH"] == "/mine"


def test_what_is_listed_is_inherited_or_set():
    given = worker_environment(["HF_TOKEN", "MODE=a=b", "EMPTY=", "PYTHONUNBUFFERED="], HERE)
    assert (given["HF_TOKEN"], given["MODE"], given["EMPTY"]) == ("hf_real", "a=b", "")
    assert given["PYTHONUNBUFFERED"] == ""


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("MY_TOKEN", "agent.env lists 'MY_TOKEN', which is not set here"),
        ("OPENAI_API_KEY", "agent.env lists 'OPENAI_API_KEY', which is agentrl's to set"),
        ("ANTHROPIC_BASE_URL=http://x", "agent.env lists 'ANTHROPIC_BASE_URL', which is agentrl's to set"),
        ("AGENTRL_WORKER=x", "agentrl's to set"),
        ("", "agent.env holds '', which names no variable"),
        ("=x", "names no variable"),
        ("A B", "names no variable"),
        ("A=\0", "names no variable"),
    ],
)
def test_what_cannot_be_listed_is_refused(entry, message):
    with pytest.raises(ConfigError) as caught:
        worker_environment([entry], HERE)
    assert message in str(caught.value)


def test_a_name_that_is_listed_twice_is_refused():
    with pytest.raises(ConfigError, match="lists 'A' twice"):
        worker_environment(["A=1", "A=2"], HERE)


def test_a_proxy_that_is_listed_is_passed_by_for_the_gateway():
    given = worker_environment(["HTTPS_PROXY", "NO_PROXY=intranet"], HERE)
    assert given["HTTPS_PROXY"] == HERE["HTTPS_PROXY"]
    assert given["NO_PROXY"] == given["no_proxy"] == "intranet,127.0.0.1,localhost"
    assert "NO_PROXY" not in worker_environment([], HERE)
