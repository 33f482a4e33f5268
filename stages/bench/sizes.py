"""Shapes of the models that are measured. Loads no torch."""

from __future__ import annotations

from typing import Any

CONTEXT = 1024  # tokens
# Widths: hidden, MLP, layers, heads, heads of keys, vocabulary.
SIZES = {
    "2M": (128, 384, 4, 4, 4, 4096),
    "15M": (320, 896, 8, 5, 5, 8192),
    "60M": (512, 1408, 16, 8, 4, 16384),
    "135M": (576, 1536, 30, 9, 3, 32000),
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 151936),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, 151936),
}


def config_of(size: str) -> dict[str, Any]:
    """What a config.json would say of a model of a size."""
    hidden, mlp, layers, heads, groups, vocabulary = SIZES[size]
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
    }
