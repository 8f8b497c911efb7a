"""What the model's rules are."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from agentrl_plugin_name.model import model_folder


def test_it_is_made_once_and_can_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = model_folder()
    made = (folder / "config.json").stat().st_mtime_ns
    assert model_folder() == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
    assert [path.name for path in folder.parent.iterdir()] == ["plugin-name"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 2?"}], tokenize=False
    )
    assert "2 + 2?" in text
