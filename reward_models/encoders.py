"""Reward models that read prompt and response as a pair of texts, as BERT-like classifiers do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf.types import Completion


@dataclass(frozen=True)
class PairClassifier:
    """See `rlhf.types.Reward`. Scores are (raw - mean) / deviation; 0 and 1 leave them raw."""

    reads_tokens: ClassVar[bool] = True  # see `rlhf.ppo.rewards`
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    context: int  # tokens
    batch_tokens: int  # padded tokens per forward
    mean: float = 0.0
    deviation: float = 1.0

    @torch.no_grad()
    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch]; of a pair that is too long, the longer text loses its end."""
        device = next(self.model.parameters()).device
        scores = torch.zeros(len(completions))
        size = max(1, self.batch_tokens // self.context)
        for start in range(0, len(completions), size):
            batch = completions[start : start + size]
            inputs = self.tokenizer(
                [c.prompt.text for c in batch],
                [c.response for c in batch],
                truncation="longest_first",
                max_length=self.context,
                padding=True,
                return_tensors="pt",
            )
            scores[start : start + len(batch)] = self.model(**inputs.to(device)).logits[:, 0].float().cpu()
        return (scores - self.mean) / self.deviation
