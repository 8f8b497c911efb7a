"""Supervised fine-tuning: a model learns what conversations say, and a run of it is one as any other."""

from __future__ import annotations

import io
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training.killing import told
from tests.warm import WarmInterpreter

from agentrl import Trainer, load_config, open_run
from agentrl.cli import main
from agentrl.config.models import SftSection
from agentrl.errors import ConfigError
from agentrl.learner.contract import TrainBatch
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.contract import Summary
from agentrl.tokens.selection import load_renderer
from agentrl.training.dialogues import Dialogue
from agentrl.training.examples import example_of_dialogue, example_of_episode, train_batch
from agentrl.training.sft_loop import Order


def conversations(path: Path, count: int, seed: int = 0) -> Path:
    """Sums, which have one answer each, so that a model can learn them."""
    numbers = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            a, b = numbers.randrange(10), numbers.randrange(10)
            messages = [
                {"role": "user", "content": f"What is {a} + {b}?"},
                {"role": "assistant", "content": str(a + b)},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def trainer(folder: Path, *settings: str, run: Path | None = None) -> Trainer:
    config = load_config(None, f"run.dir={folder / 'runs'}", *settings, environ={})
    return Trainer(config, reporter=PlainReporter(io.StringIO()), run=run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(scope="module")
def chats(folder: Path) -> Path:
    return conversations(folder / "chats.jsonl", 300)


@pytest.fixture(scope="module")
def learned(folder: Path, chats: Path) -> Summary:
    """Two epochs over a few hundred conversations."""
    with trainer(folder, "run.name=learned", "sft.epochs=2", "training.learning_rate=0.003") as sft:
        return sft.sft(chats)


def test_tiny_learns_what_a_few_hundred_conversations_say(folder: Path, learned: Summary) -> None:
    assert (learned.outcome, learned.steps, learned.conversations) == ("completed", 36, 570)
    assert learned.loss_before is not None
    assert learned.loss_after is not None
    assert learned.loss_after < 0.1 * learned.loss_before
    run = open_run(folder / "runs" / "learned")
    assert (run.state, run.info.kind, run.info.agent, run.info.steps) == ("completed", "imitation", "sft", 36)
    assert [line.step for line in run.evaluations()] == [0, 20, 36]
    step = run.steps()[-1].metrics
    assert step["policy/perplexity"] == pytest.approx(np.exp(step["policy/loss"]))
    assert step["sft/epoch"] == 2
    assert not {"policy/mismatch_kl", "policy/ratio_mean"} & step.keys()
    best = run.best_checkpoint()
    assert best is not None
    assert best.step == 36


def test_reinforcement_learning_goes_on_from_it(folder: Path, learned: Summary) -> None:
    small = ("training.steps=1", "rollout.tasks_per_step=1", "rollout.group_size=2", "tasks.eval=null")
    model = f"model={folder / 'runs' / 'learned'}"
    with trainer(folder, "run.name=after", model, *small) as training:
        summary = training.train("math")
    assert summary.outcome == "completed"
    assert open_run(folder / "runs" / "after").config.model.name == learned.checkpoint


def test_the_command_lists_the_run_and_checks_data_without_training(
    folder: Path, chats: Path, learned: Summary, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("runs", str(folder / "runs")) == 0
    assert "loss " in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("learned"))
    assert command("sft", str(chats), "--dry-run", f"run.dir={folder / 'runs'}", "run.name=dry") == 0
    printed = capsys.readouterr()
    assert "sft.data" in printed.out
    settings = [line.split() for line in printed.out.splitlines()]
    assert ["algorithm", "sft", "default,", "which", "imitates"] in settings
    assert ["training.steps", "18", "default,", "sft.epochs=1"] in settings
    assert "285 conversations with 1,841 trained tokens, 15 held out" in printed.err
    assert command("sft", str(chats), "--dry-run", "rollout.group_size=2") == 2
    assert "agentrl sft runs no agent and samples nothing" in capsys.readouterr().err
    assert command("sft", str(chats), "--dry-run", "sft.held_out=0", "evaluation.every=2") == 2
    assert "evaluation.every (command line) has no effect" in capsys.readouterr().err
    assert not (folder / "runs" / "dry").exists()


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


def test_only_what_the_assistant_says_is_trained(tiny_folder: Path) -> None:
    renderer = load_renderer(tiny_folder)
    messages = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    decode = renderer.vocabulary.decode
    first, second = (f"<think>\n\n</think>\n\n{answer}<|im_end|>" for answer in "24")
    whole = example_of_dialogue(Dialogue("chats.jsonl:1", messages, None, [1, 3]), renderer)
    assert sorted(decode(whole.token[whole.turn == turn].tolist()) for turn in (0, 1)) == [first, second]
    assert follows(train_batch([whole], np.ones(len(whole.token)), 0))
    last = example_of_dialogue(Dialogue("chats.jsonl:1", messages, None, [3]), renderer)
    assert decode(last.token.tolist()) == second


def follows(batch: TrainBatch) -> bool:
    """Whether each trained token stands on its path right after the position that predicts it, or after its end."""
    targets = batch.targets
    after = (batch.paths[path][depth + 1 : depth + 2] for path, depth in zip(targets.path, targets.depth, strict=True))
    return all(not len(found) or found[0] == token for found, token in zip(after, targets.token, strict=True))


def test_the_episodes_of_a_run_are_imitated_as_they_were_sampled(folder: Path) -> None:
    small = ("training.steps=1", "rollout.tasks_per_step=4", "rollout.group_size=4", "tasks.eval=null")
    with trainer(folder, "run.name=sampled", *small) as training:
        training.train("math")
    run = open_run(folder / "runs" / "sampled")
    episodes = list(run.load_episodes(phase="train", outcome="rewarded"))
    for episode in episodes:
        example = example_of_episode(episode, "all")
        assert example is not None
        (sampled,) = (span.ids for span in episode.tree.spans if span.sampled is not None)
        assert tuple(example.token.tolist()) == sampled
        assert follows(train_batch([example], np.ones(len(sampled)), 0))
    best = max(episode.reward or 0.0 for episode in episodes)
    with trainer(folder, "run.name=imitated", f"sft.min_reward={best}", "sft.epochs=1", "sft.held_out=0") as sft:
        summary = sft.sft("sampled")
    assert summary.conversations == sum(episode.reward == best for episode in episodes)
    assert (summary.loss_before, summary.loss_after) == (None, None)


def test_what_does_not_fit_a_pass_is_counted(folder: Path, chats: Path) -> None:
    messages = [{"role": "user", "content": "1 " * 60}, {"role": "assistant", "content": "1"}]
    longer = folder / "longer.jsonl"
    longer.write_text(chats.read_text() + json.dumps({"messages": messages}) + "\n")
    settings = ("training.tokens_per_batch=60", "training.steps=1", "sft.held_out=0")
    with trainer(folder, "run.name=longer", *settings) as sft:
        notes: list[str] = []
        sft.reporter.note = notes.append  # type: ignore[method-assign]
        assert [each.key for each in sft.check_sft(longer)] == ["algorithm", "training.learning_rate"]
        assert "300 conversations" in (told := notes[-1])
        assert "1 longer than training.tokens_per_batch and left out" in told
        assert sft.sft(longer).over_long == 1
    with pytest.raises(ConfigError, match="is left to imitate"), trainer(folder, "training.tokens_per_batch=2") as sft:
        sft.check_sft(chats)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["sft.epochs=2", "training.steps=3"], "both say how long to train"),
        (["sft.min_reward=1"], "chooses episodes of a run"),
        (["algorithm=grpo"], "compares episodes by their rewards"),
        (["algorithm={name: sft, penalties: [kl]}"], "agentrl sft does not ask"),
        (["sft.held_out_data=chat.jsonl"], "neither a file of conversations nor a run"),
        (["sft.held_out=0.5", "training.tokens_per_batch=2"], "raise training.tokens_per_batch"),
        (["sft.held_out_data=LONG", "training.tokens_per_batch=60"], "is left to measure the loss on"),
        (["training.minibatches=2"], "a step of agentrl sft is one update"),
    ],
)
def test_settings_without_sense_are_refused(folder: Path, chats: Path, settings: list[str], problem: str) -> None:
    (folder / "long.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "1 " * 60}, {"role": "assistant", "content": "1"}]})
    )
    given = [each.replace("LONG", str(folder / "long.jsonl")) for each in settings]
    with pytest.raises(ConfigError, match=problem), trainer(folder, *given) as sft:
        sft.check_sft(chats)


ENDINGS = [
    ((3, signal.SIGTERM, 75), (9, signal.SIGKILL, -9)),
    pytest.param(((5, signal.SIGINT, 130), (6, signal.SIGKILL, -9), (12, signal.SIGKILL, -9)), marks=pytest.mark.long),
]
"""At which step a run is sent which signal, and the exit code; it is resumed each time."""


@pytest.mark.parametrize("endings", ENDINGS, ids=["terminated", "interrupted"])
def test_a_run_goes_on_from_an_interrupt_a_termination_and_a_kill_to_the_same_weights(
    tmp_path: Path, warm: WarmInterpreter, endings: tuple[tuple[int, int, int], ...]
) -> None:
    folder, chats = tmp_path, conversations(tmp_path / "chats.jsonl", 100)
    settings = (
        "training.steps=16",
        "training.checkpoint_every=5",
        "evaluation.every=7",
        "training.learning_rate=0.003",
    )

    def start(*arguments: str) -> Any:
        log = (folder / "told").open("w")
        with log:
            return warm.start("sft", *arguments, cwd=folder, stdout=log, stderr=log)

    def at_step(process: Any, step: int) -> None:
        run = open_run(folder / "runs" / "stopped")
        while process.poll() is None and len(run.steps()) < step:
            time.sleep(0.002)

    assert start(str(chats), *settings, "run.name=whole").wait(120) == 0, (folder / "told").read_text()
    process = start(str(chats), *settings, "run.name=stopped")
    while process.poll() is None and not (folder / "runs" / "stopped" / "metrics.jsonl").exists():
        time.sleep(0.002)
    for step, number, code in endings:
        at_step(process, step)
        process.send_signal(number)
        assert process.wait(60) == code, (folder / "told").read_text()
        process = start("--resume", "stopped")
    assert process.wait(120) == 0, (folder / "told").read_text()
    whole, stopped = (open_run(folder / "runs" / name) for name in ("whole", "stopped"))
    lines = [[(line.step, told(line.metrics)) for line in run.metrics()] for run in (whole, stopped)]
    assert lines[0] == lines[1]
    weights = [(run.path / "checkpoints/step-000016/model.safetensors").read_bytes() for run in (whole, stopped)]
    assert weights[0] == weights[1]
    assert whole.summary is not None
    assert stopped.summary is not None
    assert whole.summary.tokens == stopped.summary.tokens
    chats.write_text(chats.read_text() + chats.read_text().splitlines()[0] + "\n")
    more = load_config(stopped.path / "config.yaml", "training.steps=30", environ={})
    again = Trainer(more, reporter=PlainReporter(io.StringIO()), run=stopped.path)
    with pytest.raises(ConfigError, match="are not those that the run began with"):
        again.sft()


ORDERS = st.builds(
    lambda sizes, count, tokens, seed: (
        sizes,
        Order(sizes, SftSection(conversations_per_step=count, tokens_per_step=tokens), seed),
    ),
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(1, 9),
    st.none() | st.integers(1, 60),
    st.integers(0, 5),
)


@given(made=ORDERS, epochs=st.integers(1, 3))
def test_every_epoch_trains_each_conversation_once(made: tuple[list[int], Order], epochs: int) -> None:
    sizes, order = made
    steps = order.steps(epochs)
    taken = [order.at(step) for step in range(steps)]
    flat = [index for each in taken for index in each]
    for epoch in range(epochs):
        assert sorted(flat[epoch * len(sizes) : (epoch + 1) * len(sizes)]) == list(range(len(sizes)))
    assert order.epochs(steps) == epochs
    assert all(taken)


@given(made=ORDERS)
def test_a_step_takes_no_more_tokens_than_it_may(made: tuple[list[int], Order]) -> None:
    sizes, order = made
    most = order._section.tokens_per_step
    for step in range(order.steps(1)):
        chosen = order.at(step)
        if most is None:
            assert len(chosen) <= order._section.conversations_per_step
        else:
            assert len(chosen) == 1 or sum(sizes[index] for index in chosen) <= most
