"""Comparisons as token rows: one encoding for training and for judging."""

from __future__ import annotations

from typing import Any

from rlhf.tokenization import Tokenization
from rlhf.types import Comparison


def encode_comparison(comparison: Comparison, tokenization: Tokenization) -> dict[str, Any]:
    """The columns of one pair: ids of both sequences, the wanted P(chosen wins), the weight."""
    prompt = tokenization.prompt(comparison.prompt)
    chosen = prompt + tokenization.response(comparison.chosen, comparison.chosen_finished)
    rejected = prompt + tokenization.response(comparison.rejected, comparison.rejected_finished)
    return {
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "target": comparison.wanted,
        "weight": comparison.weight,
    }
