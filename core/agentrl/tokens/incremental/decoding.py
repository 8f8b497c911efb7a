"""Token ids to text, piece by piece: what of the text is certain before all ids are known.

The pieces, joined, are the text that the vocabulary decodes from all ids at once, to the character. A character whose
bytes are spread over several ids comes when its last byte is there.
"""

from __future__ import annotations

import json
from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Any

from agentrl.tokens.vocabulary import Vocabulary, byte_of_token

__all__ = ["Decoder", "Pieces", "pieces_of"]


class Pieces(dict[int, "str | bytes"]):
    """What each id adds to a text: its text, or its bytes where these are no text without their neighbours."""

    def __init__(self, vocabulary: Vocabulary, *, leading: int | None) -> None:
        """``leading`` is how many blanks are taken from the start of a text, in a vocabulary that has byte tokens;
        ``None`` is a vocabulary all of whose tokens are bytes."""
        super().__init__()
        self._vocabulary = vocabulary
        self._anchor = vocabulary.encode("a")[-1:]
        self.leading = leading

    def __missing__(self, token_id: int) -> str | bytes:
        piece = self._bytewise(token_id) if self.leading is None else self._spelled(token_id)
        self[token_id] = piece
        return piece

    def _bytewise(self, token_id: int) -> str | bytes:
        piece = self._vocabulary.piece(token_id)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return piece

    def _spelled(self, token_id: int) -> str | bytes:
        token = self._vocabulary.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):
            return b""  # The model has more ids than the vocabulary, and decoding skips them.
        if (byte := byte_of_token(token)) is not None:
            return byte
        start = self._vocabulary.decode(self._anchor)
        return self._vocabulary.decode([*self._anchor, token_id]).removeprefix(start)


def pieces_of(vocabulary: Vocabulary) -> Pieces | None:
    """Return the pieces of a vocabulary, or ``None`` for one whose way of decoding is not known here."""
    backend = getattr(vocabulary, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    state = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = state.get("decoders", [state])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return Pieces(vocabulary, leading=None)
    strips = [step for step in steps if step["type"] == "Strip"]
    plain = all(step["content"] == " " and step["stop"] == 0 for step in strips)
    if [kind for kind in kinds if kind != "Replace"] not in (_FUSED, [*_FUSED, "Strip"]) or not plain:
        return None
    return Pieces(vocabulary, leading=sum(step["start"] for step in strips))


_FUSED = ["ByteFallback", "Fuse"]


class Decoder:
    """Decodes one text whose ids arrive bit by bit."""

    __slots__ = ("_leading", "_pending", "_pieces")

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._leading = pieces.leading or 0
        self._pending = b""

    @property
    def pending(self) -> bool:
        """Whether the last ids hold bytes that are not in the text yet."""
        return bool(self._pending)

    @property
    def settled(self) -> bool:
        """Whether what has come before no longer matters to what an id adds."""
        return not (self._pending or self._leading)

    def copy(self) -> Decoder:
        """Return a decoder of the same text so far."""
        other = Decoder(self._pieces)
        other._leading, other._pending = self._leading, self._pending
        return other

    def add(self, ids: Sequence[int]) -> str:
        """Return what ``ids`` add to the text, as far as it is certain."""
        parts = [self._pieces[token] for token in ids]
        if self._pending:
            text = self._slowly(parts)
        else:
            try:
                text = "".join(parts)  # type: ignore[arg-type]
            except TypeError:  # Bytes are among them.
                text = self._slowly(parts)
        return self._stripped(text) if self._leading and text else text

    def end(self) -> str:
        """Return what is left when no more ids come: marks in the place of an incomplete character."""
        run, self._pending = self._pending, b""
        text = utf_8_decode(run, "replace", True)[0] if self._pieces.leading is None else _run_text(run)
        return self._stripped(text) if self._leading and text else text

    def _slowly(self, parts: Sequence[str | bytes]) -> str:
        if self._pieces.leading is None:
            joined = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
            data = self._pending + joined
            text, used = utf_8_decode(data, "replace", False)
            self._pending = data[used:]
            return text
        texts = []
        for part in parts:
            if isinstance(part, bytes):
                self._pending += part  # One wrong byte makes a whole run of them wrong.
            else:
                texts += [_run_text(self._pending), part]
                self._pending = b""
        return "".join(texts)

    def _stripped(self, text: str) -> str:
        blanks = min(len(text) - len(text.lstrip(" ")), self._leading)
        self._leading = self._leading - blanks if blanks == len(text) else 0
        return text[blanks:]


def _run_text(run: bytes) -> str:
    """The text of a run of byte tokens: if it is not valid as a whole, each of them is a replacement character."""
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)
