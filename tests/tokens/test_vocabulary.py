"""A tokenizer from any thread: the same ids as the tokenizer's own, and bytes that add up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokens.families import tokenizer as _family
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from agentrl.tokens.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(chat_tokenizer):
    return Vocabulary(chat_tokenizer)


@given(st.text())
def test_encoding_is_the_tokenizers_own(chat_tokenizer, vocabulary, text):
    assert vocabulary.encode(text) == chat_tokenizer.encode(text, add_special_tokens=False)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["It", "is", "408", "é", "."]


def metaspace(decoder, prepend):
    """A vocabulary as SentencePiece makes them: spaces are marks, and what it does not know is bytes."""
    words = ["<unk>", *BYTES, "▁", *WORDS, *(f"▁{word}" for word in WORDS)]
    tokenizer = Tokenizer(
        models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoder
    return tokenizer


def word_pieces():
    words = ["[UNK]", *WORDS, *(f"##{word}" for word in WORDS)]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def word_ends():
    words = ["<unk>", *WORDS, *(f"{word}</w>" for word in WORDS)]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
GEMMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
FIRST = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
KINDS = {
    "byte-level": None,
    "byte fallback, a leading space stripped": lambda: metaspace(LLAMA, "always"),
    "byte fallback, every space kept": lambda: metaspace(GEMMA, "never"),
    "byte fallback, metaspace": lambda: metaspace(FIRST, "first"),
    "word pieces": word_pieces,
    "ends of words": word_ends,
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, vocabulary):
    """Every way in which vocabularies write spaces and bytes."""
    if KINDS[request.param] is None:
        return vocabulary
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param](), eos_token="</s>")
    return Vocabulary(tokenizer)


def pieces(vocabulary, ids):
    return [vocabulary.piece(token, before) for token, before in zip(ids, [None, *ids], strict=False)]


@given(st.data())
def test_the_bytes_of_the_pieces_are_those_of_the_text(kind, data):
    ids = data.draw(st.lists(st.integers(0, len(kind.get_vocab()) - 1), max_size=8))
    written, text = b"".join(pieces(kind, ids)), kind.decode(ids)
    assert written == text.encode() or ("\ufffd" in text and "\ufffd" in written.decode(errors="replace"))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_a_character_that_is_several_ids_has_its_bytes_in_them(vocabulary, text):
    assert b"".join(pieces(vocabulary, vocabulary.encode(text))) == text.encode()


def test_an_id_of_one_byte_is_that_byte_and_a_space_is_kept():
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=metaspace(LLAMA, "always")))
    ids = vocabulary.convert_tokens_to_ids(["▁It", "▁is", "<0xC3>", "<0xA9>"])
    assert pieces(vocabulary, ids) == [b"It", b" is", b"\xc3", b"\xa9"]


@given(st.text(st.characters()))
def test_half_a_character_is_encoded_as_json_spells_it(vocabulary, text):
    assert vocabulary.decode(vocabulary.encode(text)) == text.encode(errors="backslashreplace").decode()


def test_only_tokens_of_one_piece_have_an_id(vocabulary, chat_tokenizer):
    assert vocabulary.special_id("<think>") == chat_tokenizer.convert_tokens_to_ids("<think>")
    assert vocabulary.special_id("<nothing>") is None


def test_a_caller_may_change_the_ids_it_was_given(vocabulary):
    vocabulary.encode("It is 408.").clear()
    assert vocabulary.encode("It is 408.")


def test_a_tokenizers_padding_and_truncation_do_not_reach_in(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    ids = Vocabulary(tokenizer).encode("It is 408. It is 408.")
    assert tokenizer.decode(ids) == "It is 408. It is 408."


def test_many_threads_encode_at_once(vocabulary):
    texts = [f"It is {number}." for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(vocabulary.encode, texts))
    assert [vocabulary.decode(each) for each in ids] == texts


@lru_cache
def _vocabulary(family):
    return Vocabulary(_family(family))


@pytest.mark.parametrize("family", ["qwen2.5", "gemma", "phi-3"])
@given(st.text(alphabet="It is408.é\n "), st.text(alphabet="It is408.é\n "))
def test_a_text_goes_on_from_ids_as_the_text_that_they_are(family, first, rest):
    """Phi-3's vocabulary encodes a text that begins as if a space came before it."""
    vocabulary = _vocabulary(family)
    ids = vocabulary.encode(f"It is {first}")
    more = vocabulary.encode_after(ids[-1], rest)
    assert vocabulary.decode([*ids, *more]) == vocabulary.decode(ids) + rest


def test_what_a_tokenizer_puts_before_a_text_is_told(chat_tokenizer):
    assert Vocabulary(chat_tokenizer).opening == []
    tokenizer = _family("llama-3.2")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.opening == [tokenizer.bos_token_id]
    assert vocabulary.encode("It") == tokenizer.encode("It", add_special_tokens=False)
