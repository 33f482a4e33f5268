"""What models say of sampled responses: rows are dealt out over ranks by tokens, so that no rank waits for another's.

As in the update (`rlhf.ppo.dealing`), every rank has all rows and takes its part by the same rule; here each gives
back what it found to the rank that sampled the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlhf.batching import pad
from rlhf.distributed import gather_objects, rank, world_size
from rlhf.ppo.dealing import deal
from rlhf.types import Completion


class Share:
    """The rows of a rollout whose figures this rank finds; alone, all of them. Making one is a collective."""

    def __init__(self, own: Sequence[Completion], pad_id: int) -> None:
        parts = [list(own)] if world_size() == 1 else gather_objects(list(own))
        every = [completion for part in parts for completion in part]
        self.own = own
        self.begin = sum(map(len, parts[: rank()]))  # of this rank's own rows
        costs = [len(each.prompt_tokens) + len(each.response_tokens) for each in every]
        self.hands = deal(costs, world_size())
        self.completions = [every[i] for i in self.hands[rank()]]
        prompts, prompt_mask = pad([each.prompt_tokens for each in self.completions], pad_id, "left")
        responses, self.mask = pad([each.response_tokens for each in self.completions], pad_id, "right")
        self.tokens = torch.cat([prompts, responses], dim=-1)  # [rows, prompt + response], padded on both sides
        self.attention_mask = torch.cat([prompt_mask, self.mask], dim=-1)

    def returned(self, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Figures [rows] or [rows, response] of this share, of all ranks as those of this rank's own rows.

        [batch] or [batch, the longest response of those]. A collective.
        """
        if world_size() == 1:
            return dict(figures)
        parts = gather_objects(dict(figures))
        order = torch.tensor([row for hand in self.hands for row in hand]).argsort()
        own = order[self.begin : self.begin + len(self.own)]
        width = max(len(completion.response_tokens) for completion in self.own)
        return {name: _joined([part[name] for part in parts], width)[own] for name in figures}


def _joined(parts: Sequence[Tensor], width: int) -> Tensor:
    """The rows of all ranks, of figures for each token so many columns."""
    if parts[0].ndim > 1:
        parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]  # or cut
    return torch.cat(list(parts))
