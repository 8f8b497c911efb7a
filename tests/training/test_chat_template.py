"""A chat template of the user's own and the date in prompts: used by a run, kept by its checkpoints."""

from __future__ import annotations

import io
import json
from datetime import date
from pathlib import Path

import pytest
from tests.tokens.families import FAMILIES, model_folder

from agentrl import Trainer, load_config
from agentrl.config.models import ModelSection
from agentrl.errors import ConfigError
from agentrl.reporting.plain import PlainReporter
from agentrl.training.parts import load_chat

OWN = "OWN {{ strftime_now('%d %b %Y') }} {% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
BRIEF = ("training.steps=1", "rollout.tasks_per_step=1", "rollout.group_size=2", "rollout.max_tokens=4")


def prompt(chat):
    return chat.renderer.vocabulary.decode(chat.renderer.render([{"role": "user", "content": "Hi"}]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file of a template and the checkpoint of a run that used it, on the 14th of March."""
    place = tmp_path_factory.mktemp("trained")
    file = place / "own.jinja"
    file.write_text(OWN)
    config = load_config(
        None,
        f"model={model_folder('smollm2', place / 'model')}",
        f"model.chat_template={file}",
        "model.date=2026-03-14",
        f"run.dir={place}",
        "tasks.eval=null",
        *BRIEF,
        environ={},
    )
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        summary = trainer.train("math")
    assert summary.checkpoint is not None
    return file, Path(summary.checkpoint)


def test_a_checkpoint_keeps_the_template_and_the_date_of_its_run(trained):
    _, checkpoint = trained
    assert (checkpoint / "chat_template.jinja").read_text() == OWN
    assert prompt(load_chat(checkpoint, ModelSection(name="x"))) == "OWN 14 Mar 2026 [user] Hi "
    later = load_chat(checkpoint, ModelSection(name="x", date="2027-01-02"))
    assert prompt(later) == "OWN 02 Jan 2027 [user] Hi "


def test_with_the_settings_of_its_run_a_checkpoint_needs_the_file_no_more(trained, caplog):
    file, checkpoint = trained
    settings = ModelSection(name="x", chat_template=file)
    file.write_text("CHANGED")
    assert prompt(load_chat(checkpoint, settings)).startswith("OWN 14 Mar 2026")
    assert f"{file} has changed since the checkpoint was saved" in caplog.text
    file.unlink()
    assert prompt(load_chat(checkpoint, settings)).startswith("OWN 14 Mar 2026")
    moved = ModelSection(name="x", chat_template=file.parent / "moved" / file.name)
    assert prompt(load_chat(checkpoint, moved)).startswith("OWN 14 Mar 2026")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_chat(checkpoint, ModelSection(name="x", chat_template=file.parent / "another.jinja"))


def test_another_file_takes_the_place_of_what_a_checkpoint_keeps(trained, tmp_path):
    (tmp_path / "other.jinja").write_text("OTHER")
    settings = ModelSection(name="x", chat_template=tmp_path / "other.jinja")
    assert prompt(load_chat(trained[1], settings)) == "OTHER"


def test_a_models_own_template_is_not_written_anew_and_a_date_that_it_does_not_write_is_not_kept(tmp_path):
    chat = load_chat(model_folder("qwen3", tmp_path), ModelSection(name="x", date="2026-03-14"))
    assert (chat.kept.template, chat.kept.source, chat.kept.date) == (None, None, None)
    assert chat.tokenizer.chat_template == FAMILIES["qwen3"].template


def test_todays_date_is_kept_for_later(tmp_path):
    before = date.today()
    chat = load_chat(model_folder("llama-3.2", tmp_path), ModelSection(name="x"))
    assert before <= date.fromisoformat(chat.kept.date) <= date.today()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: .*No such file"),
        ("  \n", "is empty"),
        ("{% for m in messages %}\n{{ m.content }", "cannot be read: line 2"),
        (b"\xff\xfe", "cannot be read: .*utf-8"),
    ],
)
def test_a_file_that_is_no_template_is_an_error_with_its_name(tmp_path, text, said):
    file = tmp_path / "own.jinja"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = ModelSection(name="x", chat_template=file)
    with pytest.raises(ConfigError, match=said) as error:
        load_chat(model_folder("smollm2", tmp_path / "model"), settings)
    assert "template" in str(error.value)
    assert error.value.fix


def test_a_date_that_is_none_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.date: 'today' is no date \(write it as 2026-01-31\)"):
        load_chat(model_folder("smollm2", tmp_path), ModelSection(name="x", date="today"))


def test_what_a_checkpoint_says_of_its_prompts_is_in_its_folder(trained):
    said = json.loads((trained[1] / "checkpoint.json").read_text())
    assert said["date"] == "2026-03-14"
    assert said["chat_template"] == str(trained[0])
