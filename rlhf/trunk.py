"""A value head on the policy itself: one trunk, one forward, two losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PolicyWithValueHead(nn.Module):
    """A causal model whose last hidden states also give values: of zeros, until the head has learned.

    Called like the model, it gives the model's output, with `state_values` [batch, kept] in float32 where logits were
    kept. `policy` is the model itself, to sample from and to save.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        output = policy.get_output_embeddings()
        self.head = nn.Linear(output.in_features, 1, device=output.weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._hidden: Tensor | None = None
        # What the language model head is given: the final hidden states, normed, where logits are wanted.
        output.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._hidden = inputs[0]

    def forward(self, **inputs: Any) -> Any:
        """The policy's output, with `state_values`."""
        output = self.policy(**inputs)
        if self._hidden is None:
            raise RuntimeError("the language model head was not called, so there are no hidden states for the values")
        with torch.autocast(self._hidden.device.type, enabled=False):
            output.state_values = self.head(self._hidden.float()).squeeze(-1)
        self._hidden = None
        return output
