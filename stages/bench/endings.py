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
        self.again()

    def again(self) -> None:
        """The next call is of a batch's first token."""
        self.lengths = torch.empty(0)
        self.begun = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Called before each token; changes scores [batch, vocabulary] in place."""
        if not self.begun:
            rows = ([token for token in row if token != PAD] for row in input_ids.tolist())
            self.lengths = torch.tensor([self.length_of[tuple(row)] for row in rows], device=scores.device)
            self.begun = input_ids.shape[1]
        sampled = input_ids.shape[1] - self.begun
        scores[:, PAD] = -torch.inf
        scores[:, STOP] = torch.where(self.lengths <= sampled + 1, 1e4, -torch.inf)
        return scores
