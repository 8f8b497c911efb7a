"""The texts of token ids, by the tokenizer of the model that a run trains."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import RunError
from agentrl.inference.adapter_folder import tokenizer_folder
from agentrl.inference.model_folder import find_model

if TYPE_CHECKING:
    from agentrl.plugins.manager import Plugins
    from agentrl.runs.reader import Run

__all__ = ["token_texts"]

_NO_CHARACTER = "\ufffd"
"""What a decoder writes for bytes that are no character."""


def token_texts(run: Run, plugins: Plugins) -> Callable[[int], str]:
    """A function from a token id to the text of that token alone, by the tokenizer of the model of ``run``.

    A token that is a part of a character is written as the vocabulary spells it, and an id that the vocabulary does not
    hold as nothing. Nothing is downloaded: raises ``RunError`` where no tokenizer is on this machine, and an
    ``AgentRLError`` where it cannot be read.
    """
    from tokenizers import Tokenizer

    file = tokenizer_folder(_folder(run, plugins)) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises the plain class for whatever is wrong with the file.
        raise RunError(f"there is no tokenizer to be read at {file}: {error}") from error

    def text(token: int) -> str:
        decoded = str(tokenizer.decode([token], skip_special_tokens=False))
        return (tokenizer.id_to_token(token) or "") if _NO_CHARACTER in decoded or not decoded else decoded

    return text


def _folder(run: Run, plugins: Plugins) -> Path:
    """Where the model of the run is on this machine."""
    if (saved := run.newest_checkpoint()) is not None:
        return saved.path
    model = run.config.model
    is_known = any(entry.name == model.name for entry in plugins.entries("models"))
    if is_known or Path(os.path.expanduser(model.name)).is_dir():
        return find_model(plugins, model)
    raise RunError(
        f"the run {run.name} has saved no checkpoint, and its model {model.name!r} is no folder here",
        fix="the texts of tokens are known once there is one",
    )
