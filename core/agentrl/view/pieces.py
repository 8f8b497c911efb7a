"""The text of a run's tokens, by the tokenizer of its model, where that is on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import AgentRLError, one_line
from agentrl.inference.adapter_folder import base_of
from agentrl.plugins import Plugins
from agentrl.runs.reader import Run
from agentrl.tokens.vocabulary import alphabet_bytes, byte_of_token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Pieces", "pieces_of"]

_FILE = "tokenizer.json"


class Pieces:
    """Gives the bytes that single tokens stand for. Without a tokenizer it knows none, and ``missing`` says why."""

    def __init__(self, tokenizer: Tokenizer | None, missing: str = "") -> None:
        self.missing = missing
        """Why there are no texts, as a sentence; empty where there are."""
        self._tokenizer = tokenizer
        self._added: dict[int, str] = {}
        self._is_byte_level = False
        if tokenizer is not None:
            self._added = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
            space = tokenizer.token_to_id("\u0120")
            self._is_byte_level = space is not None and tokenizer.decode([space]) == " "

    def bytes_of(self, id: int) -> bytes | None:
        """The bytes of a token; ``None`` where they are not known. They need not be whole characters."""
        if self._tokenizer is None:
            return None
        if (content := self._added.get(id)) is not None:
            return content.encode()
        token = self._tokenizer.id_to_token(id)
        if token is None:
            return None
        if self._is_byte_level:
            spelled = alphabet_bytes(token)
            return token.encode() if spelled is None else spelled
        single = byte_of_token(token)
        return token.replace("\u2581", " ").encode() if single is None else single

    def text(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` one after the other, or the ids themselves where a text is not known."""
        found = [self.bytes_of(id) for id in ids]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return " ".join(map(str, ids))
        return b"".join(known).decode(errors="replace")

    def is_control(self, id: int) -> bool:
        """Whether a token marks structure, such as the end of a turn, instead of being text."""
        return id in self._added


def pieces_of(run: Run) -> Pieces:
    """The texts of the tokens of ``run``: by its newest checkpoint, or else by the model that it began with.

    Nothing is fetched: a model that is not on this machine gives no texts.
    """
    try:
        file = _tokenizer_file(run)
    except AgentRLError as error:
        return Pieces(None, f"The tokens are shown by their ids: {one_line(error)}.")
    if file is None:
        return Pieces(
            None,
            "The tokens are shown by their ids: neither a checkpoint of this run nor its model is on this machine, or "
            "it has no tokenizer.json.",
        )
    return _loaded(file, file.stat().st_mtime_ns)


@lru_cache(4)
def _loaded(file: Path, written: int) -> Pieces:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return Pieces(
            None, "The tokens are shown by their ids: `pip install tokenizers`, which reads the model's vocabulary."
        )
    try:
        return Pieces(Tokenizer.from_file(str(file)))
    except Exception as error:  # Of any kind, as the library raises them.
        return Pieces(None, f"The tokens are shown by their ids: {file} cannot be read: {one_line(error)}.")


def _tokenizer_file(run: Run) -> Path | None:
    saved = run.newest_checkpoint()
    folders = [] if saved is None else [saved.path]
    name = run.config.model.name
    folders += _named(name)
    for folder in folders:
        for each in (folder, base_of(folder)):
            if (each / _FILE).is_file():
                return each / _FILE
    return _downloaded(name)


def _named(name: str) -> list[Path]:
    """The folders that a model's name stands for. One that a plugin makes at the first use is not asked for."""
    plugins = Plugins()
    if name in {entry.name for entry in plugins.entries("models")}:
        model = plugins.get("models", name)
        return [Path(model)] if isinstance(model, str | Path) else []
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return []
    if (folder / "config.yaml").is_file() and (saved := Run(folder).newest_checkpoint()) is not None:
        return [saved.path]
    return [folder]


def _downloaded(name: str) -> Path | None:
    """The tokenizer of a Hugging Face id, where it has been downloaded before."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, _FILE)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
