"""How a model is talked to: its tokenizer, the chat template that the config may put in its place, its renderer."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.config.models import ModelSection
from agentrl.errors import ConfigError, one_line, shortened
from agentrl.tokens.renderer import Renderer, load_renderer
from agentrl.training.checkpoints import Conversing, read_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Chat", "load_chat"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chat:
    """A model's tokenizer and renderer, and what a checkpoint keeps of them."""

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    kept: Conversing


def load_chat(folder: Path, model: ModelSection) -> Chat:
    """The tokenizer and renderer of the model in ``folder``, with the chat template and the date that ``model`` names.

    Where it names none, a checkpoint has those of its run. Raises ``ConfigError`` for a file that is no template, a
    date that is none, and what ``load_renderer`` refuses.
    """
    tokenizer = _tokenizer(folder)
    info = read_checkpoint(folder)
    file = None if model.chat_template is None else Path(os.path.expanduser(model.chat_template)).resolve()
    if file is not None:
        kept = tokenizer if info.chat_template is not None and _is_that(file, Path(info.chat_template)) else None
        tokenizer.chat_template = _template(file, kept)
    day = _day(model.date) if model.date is not None else None if info.date is None else _day(info.date)
    renderer = load_renderer(tokenizer, model.renderer, day=day, plain_text=model.control_tokens == "plain")
    source = info.chat_template if file is None else str(file)
    template = tokenizer.chat_template if source is not None else None
    written = None if renderer.day is None else renderer.day.isoformat()
    return Chat(tokenizer, renderer, Conversing(source, template, written))


def _is_that(file: Path, source: Path) -> bool:
    """Whether a run was given ``file`` as ``source``; where it is no more, the run may have been moved since."""
    return file == source or (file.name == source.name and not file.exists())


def _template(file: Path, kept: PreTrainedTokenizerBase | None) -> str:
    """The text of ``file``, or of the template that a checkpoint ``kept`` when its run was given that file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if kept is not None:
            return str(kept.chat_template)
        raise ConfigError(
            f"model.chat_template: {file} cannot be read: {one_line(error)}",
            fix="name a file that holds a Jinja chat template",
        ) from error
    if not text.strip():
        raise ConfigError(f"model.chat_template: {file} is empty", fix="name a file that holds a Jinja chat template")
    if kept is not None and text != kept.chat_template:
        _log.warning("%s has changed since the checkpoint was saved, which keeps the template that it was", file)
        return str(kept.chat_template)
    return text


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"model.date: {text!r} is no date", fix="write it as 2026-01-31") from error


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model folder {folder} has no tokenizer that loads: {shortened(one_line(error))}",
            fix="save the model's tokenizer beside its weights with `save_pretrained`",
        ) from error
    return tokenizer
