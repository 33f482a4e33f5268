"""Shapes of the models that are measured. Loads no torch."""

from __future__ import annotations

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
