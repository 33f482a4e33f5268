"""Cutting batches: padding token lists, positions, and micro-batches by a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Token rows as [batch, longest] ids, padded on the left or right `side`, with the mask of real tokens."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, columns] = torch.tensor(row, dtype=torch.long)
        mask[i, columns] = True
    return tokens, mask


def split_by_tokens(widths: Sequence[tuple[int, int]], budget: int, packed: bool = False) -> list[list[int]]:
    """Cut rows into micro-batches of at most `budget` tokens, similar lengths together, the longest first.

    widths [batch] gives (prompt, response) tokens of each row. packed: nothing is padded; else prompts and responses
    are padded apart, and a micro-batch costs (longest prompt + longest response) * rows. A row over the budget stands
    alone. Returns indices into `widths`; every index occurs once. No rows: no micro-batches.
    """
    micro_batches: list[list[int]] = []
    prompt = response = tokens = 0
    for index in sorted(range(len(widths)), key=lambda i: (-sum(widths[i]), -widths[i][1], i)):
        wider = max(prompt, widths[index][0]), max(response, widths[index][1])
        more = tokens + sum(widths[index])
        cost = more if packed else sum(wider) * (len(micro_batches[-1]) + 1 if micro_batches else 1)
        if micro_batches and cost <= budget:
            micro_batches[-1].append(index)
            (prompt, response), tokens = wider, more
        else:
            micro_batches.append([index])
            (prompt, response), tokens = widths[index], sum(widths[index])
    return micro_batches


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions [batch, length] that count attended tokens from 0, so that left padding shifts nothing."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
