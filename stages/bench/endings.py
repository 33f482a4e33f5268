"""Responses of transformers' `generate` that end where the load says."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor

from stages.bench.load import PAD, STOP, Load


class Endings(LogitsProcessor):
    """Has each response end at its length: known by its prompt, which stands in the row behind padding."""

    def __init__(self, load: Load) -> None:
        pairs = zip(load.prompts(), load.lengths(), strict=True)
        self.length_of = {tuple(prompt): length for prompt, length in pairs}
        self.lengths: list[int] = []
        self.begun = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Called before each token."""
        if not self.lengths:
            rows = ([token for token in row if token != PAD] for row in input_ids.tolist())
            self.lengths = [self.length_of[tuple(row)] for row in rows]
            self.begun = input_ids.shape[1]
        sampled = input_ids.shape[1] - self.begun
        scores = scores.clone()
        scores[:, [STOP, PAD]] = -torch.inf
        ending = [row for row, length in enumerate(self.lengths) if length <= sampled + 1]
        scores[ending, STOP] = 1e4
        return scores
