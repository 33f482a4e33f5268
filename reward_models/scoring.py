"""Scores of sampled responses by a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlhf.batching import pad, split_by_tokens
from rlhf.lockstep import in_lockstep
from rlhf.models import context_of, sequence_scores
from rlhf.packing import packs
from rlhf.sharding import device_of, is_sharded
from rlhf.tokenization import Tokenization
from rlhf.types import Completion


@dataclass(frozen=True)
class RewardModel:
    """See `rlhf.types.Reward`. Scores are (raw - mean) / deviation; 0 and 1 leave them raw."""

    reads_tokens: ClassVar[bool] = True  # see `rlhf.ppo.rewards`
    model: nn.Module
    tokenization: Tokenization  # the reward model's own
    batch_tokens: int  # tokens per forward, padding among them where the model cannot pack
    mean: float = 0.0
    deviation: float = 1.0
    by_text: bool = False  # the policy has another tokenizer, so completions are rendered and encoded again

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch], by default of the very tokens that were sampled: encoding them again could change them.

        Where prompt and response exceed the reward model's context, the beginning is cut off.
        """
        if self.by_text:
            return self.score_tokens([self.encode(completion) for completion in completions])
        context = context_of(self.model)
        return self.score_tokens([[*c.prompt_tokens, *c.response_tokens][-context:] for c in completions])

    def encode(self, completion: Completion) -> list[int]:
        """A completion in the reward model's own template and tokens, its beginning cut off to fit the context."""
        prompt = self.tokenization.prompt(completion.prompt)
        response = self.tokenization.response(completion.response, completion.finished)
        return [*prompt, *response][-context_of(self.model) :]

    @torch.no_grad()
    def score_tokens(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Scores [batch] of token rows, at each row's last token."""
        widths = [(len(row), 0) for row in rows]
        work: list[list[int] | None] = list(split_by_tokens(widths, self.batch_tokens, packs(self.model)))
        shares = in_lockstep(work) if is_sharded(self.model) else work
        nothing = [[self.tokenization.pad_id]]
        said = [(own, self._forward([rows[i] for i in own] if own is not None else nothing)) for own in shares]
        scores = torch.zeros(len(rows))
        for own, found in said:  # behind all forwards, for each copy waits for the device
            if own is not None:
                scores[own] = found.cpu()
        return (scores - self.mean) / self.deviation

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        tokens, mask = pad(rows, self.tokenization.pad_id, "right")
        return sequence_scores(self.model, tokens, mask, device_of(self.model))
