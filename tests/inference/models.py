"""Small random models in folders, as a backend loads them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

VOCABULARY = 320

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def qwen3(*, seed: int = 0, tied: bool = False, context: int = 256) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = _SIZES | {"max_position_embeddings": context}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=tied))


def sliding_qwen3() -> PreTrainedModel:
    torch.manual_seed(1)
    kinds = ["sliding_attention", "full_attention"]
    config = Qwen3Config(**_SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=0, layer_types=kinds)
    return Qwen3ForCausalLM(config)


def llama() -> PreTrainedModel:
    torch.manual_seed(2)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**scaling, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    return LlamaForCausalLM(LlamaConfig(**_SIZES, rope_parameters=rope))


def qwen2() -> PreTrainedModel:
    torch.manual_seed(3)
    sizes = {key: value for key, value in _SIZES.items() if key != "head_dim"}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def mistral() -> PreTrainedModel:
    torch.manual_seed(4)
    return MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=9))


def gemma3() -> PreTrainedModel:
    torch.manual_seed(5)
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**_SIZES, sliding_window=8, layer_types=kinds, query_pre_attn_scalar=8))


def deepseek3() -> PreTrainedModel:
    """Latent attention: keys and values of different sizes."""
    torch.manual_seed(7)
    sizes = {key: value for key, value in _SIZES.items() if key != "head_dim"} | {"num_key_value_heads": 4}
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16}
    config = DeepseekV3Config(**sizes, **latent, **experts, n_group=1, topk_group=1, first_k_dense_replace=1)
    return DeepseekV3ForCausalLM(config)


def phi3_long() -> PreTrainedModel:
    """Rotations that change for the whole batch once its longest row passes 64 tokens."""
    torch.manual_seed(8)
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    config = Phi3Config(**_SIZES, rope_parameters=rope, original_max_position_embeddings=64, pad_token_id=0)
    return Phi3ForCausalLM(config)


def bloom() -> PreTrainedModel:
    """Positions enter through the attention mask."""
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))


def mpt() -> PreTrainedModel:
    """Positions are counted by the model."""
    return MptForCausalLM(MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4))


def falcon_with_alibi() -> PreTrainedModel:
    """Takes positions, and reads them from the attention mask all the same."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return FalconForCausalLM(FalconConfig(**sizes, alibi=True))


def qwen3_next() -> PreTrainedModel:
    """Recurrent layers among those with attention."""
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "shared_expert_intermediate_size": 16}
    sizes = _SIZES | {"num_hidden_layers": 4}
    return Qwen3NextForCausalLM(Qwen3NextConfig(**sizes, **experts, **linear))


def gpt2() -> PreTrainedModel:
    """Learned positions, no rotary embedding, another naming of everything."""
    torch.manual_seed(6)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4))


def scripted(*sequences: Sequence[int]) -> PreTrainedModel:
    """A Qwen3 that greedily follows ``sequences``: after each id but the last comes the next one.

    Its layers add nothing, so that logits depend on the last token alone: the row of the head for a token
    is the embedding of the one before it.
    """
    model = qwen3()
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(VOCABULARY, 32, generator=generator)
    model.model.embed_tokens.weight.copy_(embedding)
    model.model.norm.weight.fill_(1.0)
    model.lm_head.weight.zero_()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    for ids in sequences:
        for before, after in itertools.pairwise(ids):
            model.lm_head.weight[after] = 10 * embedding[before] / embedding[before].norm()
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, so that a character may be several tokens and a word one."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the answer is", "the end", "answer the question"] * 4, trainer)
    bpe.add_special_tokens(["<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")


def saved(model: PreTrainedModel, folder: Path, *, with_tokenizer: bool = True) -> Path:
    """Write a model, and the tokenizer beside it."""
    model.save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path) -> PreTrainedModel:
    """The model in ``folder``, in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()
