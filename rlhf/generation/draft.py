"""Responses while they are sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf.config import GenerationConfig
from rlhf.generation.choice import choose
from rlhf.types import Ended, Sampled


class Draft:
    """What one call of a generator is to answer, and what it has so far. Tensors are on the generator's device."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        noise: Tensor,
        limits: Sequence[int],
        stop_id: int,
        pad_id: int,
        config: GenerationConfig,
        device: torch.device,
    ) -> None:
        self.prompts = prompts
        self.noise = noise.to(device, non_blocking=True)  # [batch, response]
        self.limits = torch.tensor(limits, device=device)  # [batch] tokens
        self.stop_id = stop_id
        self.pad_id = pad_id
        self.config = config
        self.device = device
        self.watch: Callable[[Tensor, Tensor], None] | None = None
        self.ended: Ended | None = None
        self.responses = torch.full(noise.shape, pad_id, device=device)
        self.logprobs, self.log_kept = (torch.zeros(noise.shape, device=device) for _ in range(2))
        self.lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)

    def extend(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the next token of some rows [n], given its logits [n, vocabulary]: the tokens, and who goes on."""
        at = self.lengths[rows]
        logits = logits.float()
        if self.config.temperature != 1.0:
            logits = logits / self.config.temperature
        choice = choose(logits, self.noise[rows, at], self.config.top_p)
        self.responses[rows, at] = choice.tokens
        self.logprobs[rows, at] = choice.logprobs
        if self.config.top_p < 1.0:
            self.log_kept[rows, at] = choice.log_kept
        self.lengths[rows] = at + 1
        if self.watch is not None:
            self.watch(rows, choice.tokens)
        going_on = (choice.tokens != self.stop_id) & (at + 1 < self.limits[rows])
        if self.ended is not None:
            for row in rows[~going_on].tolist():
                self.ended(row, self.responses[row, : self.lengths[row]].tolist())
        return choice.tokens, going_on

    def sampled(self) -> Sampled:
        """All responses, on the CPU."""
        lengths = self.lengths.cpu()
        width = int(lengths.max())
        responses, logprobs, log_kept = (
            part[:, :width].cpu() for part in (self.responses, self.logprobs, self.log_kept)
        )
        mask = torch.arange(width) < lengths[:, None]
        finished = ((responses == self.stop_id) & mask).any(-1)
        return Sampled(responses, logprobs, logprobs - log_kept, mask, finished)
