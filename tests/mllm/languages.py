"""Tiny causal language models, and a tokenizer to go with them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from mllm.language import Language, text_shape
from vpeft.backbones.weights import Weights, content_hash

WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "?", "."]
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2),
    "llama_tied": lambda: LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES, intermediate_size=48, num_key_value_heads=2),
    "gemma2": lambda: Gemma2Config(**SIZES, intermediate_size=48, num_key_value_heads=2, head_dim=8),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, no chat template and no pad token."""
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def model(name: str = "llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    found: Any = AutoModelForCausalLM.from_config(CONFIGS[name]())
    # Far from the usual start, so that what a token answers depends on all that is before it.
    for parameter in found.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return found.eval().requires_grad_(False)


def language(name: str = "llama", seed: int = 0) -> Language:
    own = model(name, seed)
    weights = Weights("given", "tests", content_hash(own))
    return Language(own, tokenizer(), name, weights, text_shape(own), own.config.max_position_embeddings)
