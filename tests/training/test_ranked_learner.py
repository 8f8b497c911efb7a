"""A learner in a process of its own: what it does, and what is lent of it, is to the bit that of a learner here."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import groups_of_one_turn
from tests.learner.models import VOCABULARY, qwen3
from tests.warm import WarmInterpreter

from agentrl import load_config
from agentrl.algorithms.batch import build_batch
from agentrl.config.models import Config
from agentrl.errors import ConfigError, HostLostError, RunError
from agentrl.hosting.local import LocalHosts
from agentrl.learner.contract import Targets, Trainable, TrainBatch
from agentrl.learner.learner import Learner
from agentrl.training.ranked_learner import RankedLearner

IDS = [index * 7 % VOCABULARY for index in range(40)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("model")
    qwen3().float().save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path


def config_of(*settings: str) -> Config:
    return load_config(None, "training.learning_rate=0.01", *settings, environ={})


@contextlib.contextmanager
def both(folder: Path, *settings: str) -> Iterator[tuple[Learner, RankedLearner]]:
    """A learner here, and one in a process of its own, or in several."""
    config = config_of(*settings)
    here = Learner(folder, config.training, grpo().loss, config.seed)
    there = RankedLearner.start(LocalHosts(), config, folder)
    try:
        yield here, there
    finally:
        there.close()


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[tuple[Learner, RankedLearner]]:
    """The one whose process starts as those of users do: its interpreter is not warm."""
    with both(folder) as pair:
        yield pair


@pytest.fixture(scope="module")
def adapted(folder: Path, warm: WarmInterpreter) -> Iterator[tuple[Learner, RankedLearner]]:
    with warm.hosting(folder / "started"), both(folder, "training.lora=4") as pair:
        yield pair


@pytest.fixture(scope="module", params=["whole", pytest.param("adapter", marks=pytest.mark.long)])
def two(folder: Path, warm: WarmInterpreter, request: pytest.FixtureRequest) -> Iterator[tuple[Learner, RankedLearner]]:
    """A learner here, and one in two processes."""
    adapter = ("training.lora=4",) if request.param == "adapter" else ()
    settings = ("training.processes=2", "training.tokens_per_batch=48", "training.learning_rate=0.0001", *adapter)
    with warm.hosting(folder / "started"), both(folder, *settings) as pair:
        yield pair


@pytest.fixture(params=["whole", "adapted"])
def pair(request: pytest.FixtureRequest) -> tuple[Learner, RankedLearner]:
    made: tuple[Learner, RankedLearner] = request.getfixturevalue(request.param)
    return made


def batch(seed: int = 0) -> TrainBatch:
    groups = groups_of_one_turn(random.Random(seed), VOCABULARY, groups=2, size=3, prompt=6, longest=5)
    return build_batch(groups, grpo())[0]


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds/")}


def tensors(learner: Trainable) -> dict[str, torch.Tensor]:
    with learner.lend("a test") as weights:
        return {name: tensor.clone() for name, tensor in weights.tensors()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert right[name].dtype == tensor.dtype
        assert torch.equal(right[name], tensor), name


def test_steps_have_the_same_metrics_scores_and_weights(pair: tuple[Learner, RankedLearner]) -> None:
    here, there = pair
    assert there.rows_because == here.rows_because
    assert there.merges_at_start == here.merges_at_start
    for seed in range(3):
        one, other = here.step(batch(seed)), there.step(batch(seed))
        assert timeless(one.metrics) == timeless(other.metrics)
        np.testing.assert_array_equal(one.terms.logprob, other.terms.logprob)
        np.testing.assert_array_equal(one.terms.entropy, other.terms.entropy)
        np.testing.assert_array_equal(one.terms.importance, other.terms.importance)
        assert there.version == here.version
    assert_equal(tensors(here), tensors(there))


def test_what_is_lent_is_the_same(pair: tuple[Learner, RankedLearner], tmp_path: Path) -> None:
    here, there = pair
    with here.lend("a test") as one, there.lend("a test") as other:
        assert (other.version, list(other.names())) == (one.version, list(one.names()))
        assert list(other.logprobs(IDS)) == list(one.logprobs(IDS))
        dtypes = dict.fromkeys(one.names(), "bfloat16")
        assert other.digests(dtypes) == one.digests(dtypes)
        one.save(tmp_path / "one")
        other.save(tmp_path / "other")
        target = f"{count.__module__}:{count.__name__}"
        assert other.send(target, more=2) == one.send(target, more=2) == len(one.names()) + 2
        if one.adapter is not None:
            assert other.adapter is not None
            ours, theirs = one.adapter, other.adapter
            assert (theirs.rank, theirs.scale, list(theirs.targets)) == (ours.rank, ours.scale, list(ours.targets))
            assert_equal(dict(ours.tensors()), dict(theirs.tensors()))
            assert_equal(dict(ours.merged()), dict(theirs.merged()))
            names = dict.fromkeys((name for name, _ in ours.merged()), "bfloat16")
            assert list(theirs.merged_logprobs(IDS, names)) == list(ours.merged_logprobs(IDS, names))
            assert theirs.digests(names) == ours.digests(names)
            theirs.save(tmp_path / "adapter")
            assert (tmp_path / "adapter" / "adapter_config.json").exists()
        else:
            assert other.adapter is None
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert saved[0] == saved[1]


def count(weights: Any, *, more: int) -> int:
    return sum(1 for _ in weights.tensors()) + more


def test_tensors_that_were_passed_on_stay_what_they_were(whole: tuple[Learner, RankedLearner]) -> None:
    _, there = whole
    with there.lend("a test") as weights:
        kept = dict(weights.tensors())
    before = {name: tensor.clone() for name, tensor in kept.items()}
    there.step(batch(7))
    whole[0].step(batch(7))
    assert_equal(before, kept)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in tensors(there).items())


def test_nothing_changes_while_weights_are_lent_and_they_are_of_no_use_once_they_are_back(
    whole: tuple[Learner, RankedLearner], tmp_path: Path
) -> None:
    _, there = whole
    with there.lend("the engine") as weights:
        with pytest.raises(RuntimeError, match="are lent to the engine: give them back first"):
            there.step(batch())
        begun = weights.tensors()
        next(begun)
    for use in (lambda: weights.logprobs(IDS), lambda: list(weights.tensors()), lambda: next(begun)):
        with pytest.raises(RuntimeError, match=r"the engine used the weights of version .* after giving them back"):
            use()
    there.score(*targets())


def targets() -> tuple[Targets, list[np.ndarray[Any, np.dtype[np.int64]]]]:
    size = len(IDS) - 1
    made = Targets(np.zeros(size, dtype=np.int64), np.arange(size), np.array(IDS[1:]), np.ones(size))
    return made, [np.array(IDS)]


def test_two_processes_do_what_one_does(two: tuple[Learner, RankedLearner], tmp_path: Path) -> None:
    """What is computed is told in the tests of the learner; here, that all ranks take part in all that is asked."""
    here, there = two
    for seed in range(2):
        one, other = here.step(batch(seed)), there.step(batch(seed))
        assert other.metrics["policy/loss"] == pytest.approx(one.metrics["policy/loss"], abs=1e-6)
        np.testing.assert_allclose(other.terms.logprob, one.terms.logprob, atol=1e-5)
    np.testing.assert_allclose(there.score(*targets()).logprob, here.score(*targets()).logprob, atol=1e-5)
    expected = tensors(here)
    found = tensors(there)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
    with there.lend("a test") as weights:
        assert list(weights.names()) == list(expected)
        assert len(weights.logprobs(IDS)) == len(IDS) - 1
        digests = weights.digests(dict.fromkeys(expected, "float32"))
        sent = weights.send(f"{gathered.__module__}:{gathered.__name__}", ids=IDS, folder=tmp_path / "sent")
        assert sent == (digests, list(weights.logprobs(IDS)))
        assert (tmp_path / "sent" / "model.safetensors").exists()
        with pytest.raises(RunError, match=r"learner rank 0 could not send: ZeroDivisionError"):
            weights.send(f"{failing.__module__}:{failing.__name__}")
        assert list(weights.names()) == list(expected)
        if weights.adapter is not None:
            assert len(dict(weights.adapter.tensors())) == 2 * len(dict(weights.adapter.merged()))
    there.save(tmp_path / "saved")
    there.save_state(tmp_path / "saved")
    here.go_back(tmp_path / "saved", 9)
    there.go_back(tmp_path / "saved", 9)
    one, other = here.step(batch(5)), there.step(batch(5))
    assert (here.version, there.version) == (10, 10)
    assert other.metrics["policy/loss"] == pytest.approx(one.metrics["policy/loss"], abs=1e-6)


def gathered(weights: Any, *, ids: list[int], folder: Path) -> tuple[Any, list[float]]:
    """Looks at the weights in every way that there is, some of them at once."""
    first, second = weights.tensors(), weights.tensors()
    names = [name for (name, tensor), (again, same) in zip(first, second, strict=True) if torch.equal(tensor, same)]
    next(weights.tensors())  # And gives up.
    if weights.adapter is not None:
        assert len(list(weights.adapter.tensors())) == 2 * len(list(weights.adapter.merged()))
    weights.save(folder)
    return weights.digests(dict.fromkeys(names, "float32")), list(weights.logprobs(ids))


def failing(weights: Any) -> None:
    next(weights.tensors())
    raise ZeroDivisionError


def test_a_rank_of_two_that_is_killed_ends_both(folder: Path, warm_hosts: Path) -> None:
    there = RankedLearner.start(LocalHosts(), config_of("training.processes=2"), folder)
    try:
        os.kill(process_of(there, 1), signal.SIGKILL)
        with pytest.raises(HostLostError, match=r"learner rank 1 on .* was ended by SIGKILL.*; it was to take step 1"):
            there.step(batch())
        assert not Path(f"/proc/{process_of(there, 0)}").exists()
    finally:
        there.close()


def test_scores_are_the_same_with_and_without_the_adapter(pair: tuple[Learner, RankedLearner]) -> None:
    here, there = pair
    np.testing.assert_array_equal(there.score(*targets()).logprob, here.score(*targets()).logprob)
    if here.adapter is None:
        with pytest.raises(ValueError, match="no adapter"), there.without_adapter():
            pass
        return
    with here.without_adapter():
        expected = here.score(*targets()).logprob
    with there.without_adapter():
        np.testing.assert_array_equal(there.score(*targets()).logprob, expected)
    assert not np.array_equal(there.score(*targets()).logprob, expected)


def test_a_checkpoint_of_either_is_one_of_the_other(pair: tuple[Learner, RankedLearner], tmp_path: Path) -> None:
    here, there = pair
    there.save(tmp_path)
    there.save_state(tmp_path)
    before = tensors(there)
    for learner in pair:
        learner.step(batch(11))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in tensors(there).items())
    for learner in pair:
        learner.go_back(tmp_path, 50)
        assert learner.version == 50
        assert_equal(tensors(learner), before)
    for learner in pair:
        learner.load_state(tmp_path)
    assert there.version == here.version < 50
    one, other = here.step(batch(12)), there.step(batch(12))
    assert timeless(one.metrics) == timeless(other.metrics)
    assert_equal(tensors(here), tensors(there))


def test_errors_are_those_of_a_learner(
    whole: tuple[Learner, RankedLearner], folder: Path, tmp_path: Path, warm_hosts: Path
) -> None:
    _, there = whole
    with pytest.raises(RunError, match="cannot be read"):
        there.load_state(tmp_path / "nowhere")
    assert there.step(batch()).metrics["tokens/trained"] > 0
    whole[0].step(batch())
    with pytest.raises(ConfigError, match="causal language model"):
        RankedLearner.start(LocalHosts(), config_of(), tmp_path)


def process_of(learner: RankedLearner, rank: int = 0) -> int:
    pid: int = getattr(learner._ranks[rank], "_pid")  # noqa: B009 - Hosts of other schedulers have none.
    return pid


def test_a_rank_that_is_killed_is_named_with_what_it_was_to_do(folder: Path, tmp_path: Path, warm_hosts: Path) -> None:
    there = RankedLearner.start(LocalHosts(), config_of(), folder, logs=tmp_path)
    try:
        pid = process_of(there)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(HostLostError, match=r"learner rank 0 on .* was ended by SIGKILL.*; it was to take step 1"):
            there.step(batch())
        with pytest.raises(HostLostError, match="learner rank 0"):
            there.save(tmp_path / "saved")
        with there.lend("the engine") as weights, pytest.raises(HostLostError):
            weights.names()
        assert (tmp_path / "hosts" / "learner-rank-0.log").exists()
    finally:
        there.close()


def test_a_rank_that_hangs_is_lost_when_its_time_is_over(folder: Path, warm_hosts: Path) -> None:
    there = RankedLearner.start(LocalHosts(), config_of("training.processes=2"), folder)
    there._timeout = 1.0
    try:
        assert there.given_up_for(RunError("waited 1 s for a checkpoint")) is None
        processes = [process_of(there, rank) for rank in (0, 1)]
        os.kill(processes[1], signal.SIGSTOP)
        # The other one waits for it, and is not to blame.
        words = r"waited 1 s for learner rank 1 on this machine \([^)]*\) to take step 1 \(.*raise training.timeout"
        with pytest.raises(HostLostError, match=words):
            there.step(batch())
        assert not any(Path(f"/proc/{each}").exists() for each in processes)
    finally:
        there.close()


class _Silent:
    """A rank that says nothing."""

    name = "learner rank 0"
    node = "node 7"
    address = "127.0.0.1"

    def __init__(self) -> None:
        self.is_stopped = False

    def ask(self, method: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()

    def stop(self, patience: float) -> None:
        self.is_stopped = True


class _SilentHosts(LocalHosts):
    def __init__(self) -> None:
        self.started = _Silent()

    def start(self, specs: Any, **keys: Any) -> Any:
        return [self.started]


def test_ranks_are_not_waited_for_that_load_when_the_run_is_given_up(tmp_path: Path) -> None:
    hosts, given_up = _SilentHosts(), threading.Event()
    threading.Timer(0.2, given_up.set).start()
    with pytest.raises(RunError, match="were to load the model when that was given up"):
        RankedLearner.start(hosts, config_of("training.timeout=3600"), tmp_path, given_up=given_up)
    assert hosts.started.is_stopped


def test_a_deadline_that_passes_for_want_of_a_rank_is_the_loss_of_that_rank() -> None:
    silent = _Silent()
    there = RankedLearner([silent], timeout=3600)
    lost = there.given_up_for(RunError("waited 9 s for the engine to take weights"))
    assert isinstance(lost, HostLostError)
    assert "weights, and learner rank 0 on node 7 did not answer at all" in lost.message
    assert silent.is_stopped
    with pytest.raises(HostLostError, match="did not answer at all"):
        there.set_aside()
