"""The model families as a user meets them: the real chat template and special tokens, on small random weights.

``tokenizer(name)`` gives the tokenizer of a family and ``model_folder(name, path)`` a whole model of it:
two layers, nothing downloaded. The templates are the official ones, read from the installed trl package;
where it has none, a template of our own writes the family's documented format.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["FAMILIES", "Family", "model", "model_folder", "official", "tokenizer"]

_TEXTS = [
    "What is 12 * 34? It is 408. The sum of 57 and 28 is 85. Let me see: first multiply, then check the answer.",
    'You are a helpful assistant. {"name": "calculate", "arguments": {"expression": "12 * 34"}} error: not found',
    "user assistant system tool model functions final analysis commentary Today Date: Environment: ipython",
]


@dataclass(frozen=True)
class Family:
    """One family's template and tokens."""

    template: str
    """Text of the Jinja template."""
    eos: str
    special: tuple[str, ...] = ()
    """Special tokens, ``eos`` among them or not."""
    marks: tuple[str, ...] = ()
    """Whole tokens that the family's tokenizer does not call special."""
    bos: str | None = None
    pad: str | None = None
    ends: tuple[str, ...] = ()
    """What ``generation_config.json`` lists as ends of a turn, ``eos`` alone where empty."""
    turn_end: str = ""
    """The token that the template writes after a turn's text, ``eos`` where empty."""
    pieces: str = "bytes"
    """How texts are split: ``bytes`` as GPT-2's vocabulary, or ``gemma`` or ``llama``, which spell rare
    characters in byte tokens and write a space as ▁."""
    swallows: bool = False
    """Whether special tokens take the blanks after them, as Phi-3's do."""

    @property
    def end(self) -> str:
        """The token after a turn of the assistant that is plain text."""
        return self.turn_end or self.eos


def official(name: str) -> str:
    """A template of the installed trl package, which is not imported."""
    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.origin is not None
    return (Path(found.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


_SMOLLM2 = """
{%- for m in messages -%}
  {%- if loop.first and m.role != 'system' -%}
    {{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_OLMO2 = """
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role in ('system', 'user') -%}
    {{- '<|' + m.role + '|>\\n' + m.content + '\\n' -}}
  {%- elif m.role == 'assistant' -%}
    {{- '<|assistant|>\\n' + m.content + eos_token -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

_OLMO3 = """
{%- macro shown() -%}
  {%- if tools -%}{{- ' <functions>' + tools | tojson + '</functions>' -}}
  {%- else -%}{{- ' You have no functions. <functions></functions>' -}}{%- endif -%}
{%- endmacro -%}
{%- if not messages or messages[0].role != 'system' -%}
  {{- '<|im_start|>system\\nYou may call functions.' + shown() + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{{- '<|im_start|>system\\n' + m.content + shown() + '<|im_end|>\\n' -}}
  {%- elif m.role == 'assistant' -%}
    {{- '<|im_start|>assistant\\n' + (m.content or '') -}}
    {%- for call in m.tool_calls or [] -%}
      {%- if loop.first -%}{{- '<function_calls>' -}}{%- else -%}{{- '\\n' -}}{%- endif -%}
      {{- call.function.name + '(' -}}
      {%- for key, value in call.function.arguments.items() -%}
        {{- key + '=' + value | tojson -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}
      {%- endfor -%}
      {{- ')' -}}{%- if loop.last -%}{{- '</function_calls>' -}}{%- endif -%}
    {%- endfor -%}
    {%- if loop.last -%}{{- eos_token -}}{%- else -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
  {%- elif m.role == 'tool' -%}{{- '<|im_start|>environment\\n' + m.content + '<|im_end|>\\n' -}}
  {%- else -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_GRANITE3 = """
{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- set rest = messages[1:] -%}
{%- else -%}
  {%- set system = "Today's Date: " + strftime_now('%B %d, %Y') + '.\\nYou are Granite.' -%}
  {%- set rest = messages -%}
{%- endif -%}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' -}}
{%- if tools -%}
  {{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\\n' -}}
{%- endif -%}
{%- for m in rest -%}
  {{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}
"""

_GRANITE4 = """
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if tools -%}
  {{- '<|start_of_role|>system<|end_of_role|>' + (system + '\\n\\n' if system else '') -}}
  {{- 'You may call these tools:\\n<tools>' -}}
  {%- for tool in tools -%}{{- '\\n' + tool | tojson -}}{%- endfor -%}
  {{- '\\n</tools>\\nWrite a call as {"name": NAME, "arguments": OBJECT} between tool_call tags.<|end_of_text|>\\n' -}}
{%- elif system -%}
  {{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
    {{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n' -}}
  {%- elif m.role == 'assistant' -%}
    {{- '<|start_of_role|>assistant<|end_of_role|>' + (m.content or '') -}}
    {%- for call in m.tool_calls or [] -%}
      {%- if m.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
      {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
      {%- if call.function.arguments is string -%}{{- call.function.arguments -}}
      {%- else -%}{{- call.function.arguments | tojson -}}{%- endif -%}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|end_of_text|>\\n' -}}
  {%- elif m.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
      {{- '<|start_of_role|>user<|end_of_role|>' -}}
    {%- endif -%}
    {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|end_of_text|>\\n' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}
"""

# Tools stand before the last question, ids of calls have nine letters or digits, and answers their call's id.
_MISTRAL = """
{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = none -%}{%- set rest = messages -%}{%- endif -%}
{%- set asked = namespace(last=-1) -%}
{%- for m in rest -%}{%- if m.role == 'user' -%}{%- set asked.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{{- bos_token -}}
{%- for m in rest -%}
  {%- if m.role == 'user' -%}
    {%- if tools and loop.index0 == asked.last -%}
      {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}
    {%- endif -%}
    {{- '[INST] ' + (system + '\\n\\n' if loop.last and system else '') + m.content + '[/INST]' -}}
  {%- elif m.role == 'assistant' and m.tool_calls -%}
    {{- '[TOOL_CALLS] [' -}}
    {%- for call in m.tool_calls -%}
      {%- if call.id is not defined or call.id | length != 9 -%}
        {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}
      {%- endif -%}
      {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson -}}
      {{- ', "id": "' + call.id + '"}' -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}
    {%- endfor -%}
    {{- ']' + eos_token -}}
  {%- elif m.role == 'assistant' -%}{{- ' ' + m.content + eos_token -}}
  {%- elif m.role == 'tool' -%}
    {%- if m.tool_call_id is not defined or m.tool_call_id | length != 9 -%}
      {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}
    {%- endif -%}
    {{- '[TOOL_RESULTS] {"content": ' + m.content | string + ', "call_id": "' + m.tool_call_id + '"}' -}}
    {{- '[/TOOL_RESULTS]' -}}
  {%- else -%}{{- raise_exception('Only user and assistant roles are supported!') -}}{%- endif -%}
{%- endfor -%}
"""

_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_CALLS = ("<tool_call>", "</tool_call>")
_QWEN3 = (*_QWEN_CALLS, "<tool_response>", "</tool_response>", "<think>", "</think>")
_LLAMA = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
_PHI = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>")
_MISTRAL_MARKS = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")
_DEEPSEEK_PARTS = ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "outputs▁begin", "outputs▁end")
_DEEPSEEK = (
    "<｜User｜>",
    "<｜Assistant｜>",
    *(f"<｜tool▁{part}｜>" for part in (*_DEEPSEEK_PARTS, "output▁begin", "output▁end", "sep")),
    "<think>",
    "</think>",
)
_GRANITE = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")
_GLM = ("[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_GLM_MARKS = (*_QWEN3, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink")
_COHERE = tuple(f"<|{part}_TOKEN|>" for part in ("START_OF_TURN", "END_OF_TURN", "USER", "CHATBOT", "SYSTEM"))


def _qwen2_5() -> Family:
    return Family(
        official("qwen2_5"),
        eos="<|im_end|>",
        special=_QWEN,
        marks=_QWEN_CALLS,
        pad="<|endoftext|>",
        ends=("<|im_end|>", "<|endoftext|>"),
    )


def _llama(template: str, *ends: str) -> Family:
    return Family(
        official(template), eos="<|eot_id|>", special=_LLAMA, bos="<|begin_of_text|>", ends=("<|end_of_text|>", *ends)
    )


def _gemma(template: str) -> Family:
    turns = ("<start_of_turn>", "<end_of_turn>")
    ends = ("<eos>", "<end_of_turn>")
    return Family(
        official(template),
        eos="<eos>",
        special=("<pad>", "<eos>", "<bos>", *turns),
        bos="<bos>",
        pad="<pad>",
        ends=ends,
        turn_end="<end_of_turn>",
        pieces="gemma",
    )


def _phi(template: str) -> Family:
    ends = ("<|endoftext|>", "<|assistant|>", "<|end|>")
    return Family(
        official(template),
        eos="<|endoftext|>",
        special=_PHI,
        pad="<|endoftext|>",
        ends=ends,
        turn_end="<|end|>",
        pieces="llama",
        swallows=True,
    )


def _deepseek(template: str) -> Family:
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return Family(official(template), eos=end, special=(begin, end), marks=_DEEPSEEK, bos=begin, pad=end)


FAMILIES: dict[str, Family] = {
    "qwen2.5": _qwen2_5(),
    "qwen3": replace(_qwen2_5(), template=official("qwen3"), marks=_QWEN3),
    "llama-3": _llama("llama3", "<|eot_id|>"),
    "llama-3.1": _llama("llama3_1", "<|eom_id|>", "<|eot_id|>"),
    "llama-3.2": _llama("llama3_2", "<|eom_id|>", "<|eot_id|>"),
    "mistral": Family(
        _MISTRAL,
        eos="</s>",
        special=("<s>", "</s>", *_MISTRAL_MARKS, "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        bos="<s>",
        pieces="llama",
    ),
    "gemma": _gemma("gemma"),
    "gemma-3": _gemma("gemma3"),
    "phi-3": _phi("phi3"),
    "phi-3.5": _phi("phi3_5"),
    "smollm2": Family(_SMOLLM2, eos="<|im_end|>", special=_QWEN, bos="<|im_start|>", pad="<|im_end|>"),
    "olmo-2": Family(_OLMO2, eos="<|endoftext|>", special=("<|endoftext|>",), bos="<|endoftext|>"),
    "olmo-3": Family(
        _OLMO3,
        eos="<|endoftext|>",
        special=_QWEN,
        marks=("<functions>", "</functions>", "<function_calls>", "</function_calls>"),
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    "granite-3": Family(_GRANITE3, eos="<|end_of_text|>", special=_GRANITE, pad="<|end_of_text|>"),
    "granite-4": Family(_GRANITE4, eos="<|end_of_text|>", special=_GRANITE, marks=_QWEN3, pad="<|end_of_text|>"),
    "gpt-oss": Family(
        official("gptoss"),
        eos="<|return|>",
        special=("<|startoftext|>", "<|endoftext|>", *_HARMONY),
        bos="<|startoftext|>",
        pad="<|endoftext|>",
        ends=("<|return|>", "<|endoftext|>", "<|call|>"),
    ),
    "deepseek-v3": _deepseek("deepseekv3"),
    "deepseek-r1": _deepseek("deepseek_r1_distill"),
    "glm-4.5": Family(
        official("glm4moe"),
        eos="<|endoftext|>",
        special=("<|endoftext|>", *_GLM),
        marks=_GLM_MARKS,
        pad="<|endoftext|>",
        ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
        turn_end="<|user|>",
    ),
    "cohere": Family(
        official("cohere"),
        eos="<|END_OF_TURN_TOKEN|>",
        special=("<PAD>", "<BOS_TOKEN>", *_COHERE),
        bos="<BOS_TOKEN>",
        pad="<PAD>",
    ),
}
"""By name, as ``docs/templates.md`` lists them."""


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, a copy of the caller's own."""
    return copy.deepcopy(_tokenizer(name))


def model(name: str) -> PreTrainedModel:
    """A random model over the family's vocabulary, its ends of turn where the family has them."""
    return _model(name, tokenizer(name))


def model_folder(name: str, folder: Path) -> Path:
    """Writes a family's model with its tokenizer into ``folder``."""
    tokens = tokenizer(name)
    _model(name, tokens).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


@lru_cache
def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    pieces = {"bytes": _byte_level, "gemma": _gemma_pieces, "llama": _llama_pieces}[family.pieces]()
    special = dict.fromkeys((*family.special, family.eos))
    pieces.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=family.swallows) for token in special]
    )
    pieces.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.marks])
    named = {"bos_token": family.bos, "pad_token": family.pad, "unk_token": None}
    if family.pieces != "bytes":
        named["unk_token"] = "<unk>"
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        eos_token=family.eos,
        chat_template=family.template,
        **{key: token for key, token in named.items() if token},
    )


def _byte_level() -> Tokenizer:
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(pieces, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return pieces


def _gemma_pieces() -> Tokenizer:
    pieces = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    pieces.normalizer = normalizers.Replace(" ", "▁")
    pieces.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # No merge crosses a word.
    _train(pieces, trainers.BpeTrainer(vocab_size=460, special_tokens=_bytes(), show_progress=False))
    return _plain_bytes(pieces)


def _llama_pieces() -> Tokenizer:
    """A text begins with ▁ as after a space, which decoding takes away again."""
    pieces = _gemma_pieces()
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaced = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    pieces.decoder = decoders.Sequence(spaced)
    return pieces


def _train(pieces: Tokenizer, trainer: trainers.BpeTrainer) -> None:
    pieces.train_from_iterator(_TEXTS * 2, trainer)


def _bytes() -> list[str]:
    return ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]


def _plain_bytes(pieces: Tokenizer) -> Tokenizer:
    """The same vocabulary without its bytes among the special tokens, where the trainer needs them."""
    trained = pieces.model
    bare = Tokenizer(trained)
    bare.normalizer, bare.decoder = pieces.normalizer, pieces.decoder
    return bare


def _model(name: str, tokens: PreTrainedTokenizerFast) -> PreTrainedModel:
    family = FAMILIES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    made = LlamaForCausalLM(config).eval()
    ends = tokens.convert_tokens_to_ids(list(family.ends or (family.eos,)))
    made.generation_config = GenerationConfig(
        bos_token_id=tokens.bos_token_id, eos_token_id=ends, pad_token_id=tokens.pad_token_id
    )
    return made
