"""Real servers that hosts start, as a scheduler places them on other machines: guarded, supervised and started anew."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from elsewhere import Elsewhere
from lending import Owner, lent_backend
from real import KEYS, START_S
from servers import kill_workers

from agentrl.testing.backends.bench import Bench, started_bench
from agentrl.testing.parts import model_folder

pytestmark = pytest.mark.real

EXACT = 1e-4


@pytest.fixture(scope="module")
def hosts() -> Elsewhere:
    return Elsewhere()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def served(hosts: Elsewhere, logs: Path) -> Iterator[Bench]:
    owner = Owner()
    folder = model_folder("tiny")

    def build(folder: Path) -> object:
        from agentrl.testing.backends.reference import load_reference

        class First:
            reference = load_reference(folder)

        owner.bench = First  # Until the bench is there.
        return lent_backend(dict(KEYS), folder, owner.lend, hosts=hosts, logs=logs)

    with started_bench(build, folder, timeout=START_S, start_timeout=START_S) as table:
        owner.bench = table
        yield table
        key = table.backend._key
    # Other tests have servers at the same time, with keys of their own.
    environments = [each.info["environ"] or {} for each in psutil.process_iter(["environ"])]
    assert key not in [each.get("AGENTRL_VLLM_KEY") for each in environments], "servers outlive the run"


def exact(served: Bench) -> None:
    for compared in served.sample(max_tokens=8):
        assert set(compared.chunk.versions) == {served.reference.version}
        assert compared.off_by < EXACT


def test_a_server_is_started_without_weights_and_is_sent_them(served: Bench, hosts: Elsewhere, logs: Path) -> None:
    (spec,) = hosts.asked
    assert (spec.target, spec.gpus) == ("agentrl_vllm.hosted:ServerHost", 0.0)
    exact(served)
    served.update()
    exact(served)
    assert "Application startup complete" in (logs / "vllm-0.log").read_text()


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/collective_rpc", "/pause"])
def test_who_does_not_show_the_key_is_turned_away_at_every_path(served: Bench, path: str) -> None:
    (replica,) = served.backend.replicas
    for headers in ({}, {"Authorization": "Bearer guessed"}):
        body = json.dumps({"method": "agentrl_describe"}).encode() if path == "/collective_rpc" else None
        request = urllib.request.Request(replica.url + path, data=body, headers=headers)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=30)


def test_the_key_is_in_no_log_and_on_no_command_line(served: Bench, logs: Path) -> None:
    key = served.backend._key
    assert key
    assert all(key not in each.read_text() for each in logs.iterdir())
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            assert key not in " ".join(process.cmdline())


@pytest.mark.parametrize("what", ["the host", "the server"])
def test_what_is_lost_is_started_anew_and_has_the_newest_weights(served: Bench, hosts: Elsewhere, what: str) -> None:
    served.update()
    count = len(hosts.started)
    if what == "the host":
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.pid == hosts.started[-1]._pid:
                    process.kill()
    else:
        kill_workers()
    exact(served)
    assert len(hosts.started) > count
    served.update()
    exact(served)
