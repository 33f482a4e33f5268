"""Decoding a batch with transformers' own cache, for architectures that take no packed sequences."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from rlhf.batching import pad, position_ids
from rlhf.distributed import global_max
from rlhf.generation.draft import Draft


def decode_together(policy: nn.Module, draft: Draft, rows: list[int] | None, lockstep: bool) -> None:
    """Sample the responses to some rows; who has ended leaves the batch. lockstep: of none, make the others' calls."""
    padded = pad([draft.prompts[row] for row in rows or ()] or [[draft.pad_id]], draft.pad_id, "left")
    tokens, attention_mask = (part.to(draft.device, non_blocking=True) for part in padded)
    live = torch.tensor(rows or [], dtype=torch.long, device=draft.device)
    cache = DynamicCache(config=policy.config)  # type: ignore[arg-type]
    positions, name = position_ids(attention_mask), name_of_cache(policy)
    while global_max(len(live)) if lockstep else len(live):
        if not len(live):
            accompany(policy, draft)
            continue
        output = policy(
            input_ids=tokens,
            attention_mask=attention_mask,
            position_ids=positions,
            **{name: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        chosen, going_on = draft.extend(live, output.logits[:, -1])
        if not going_on.all():
            kept = going_on.nonzero().squeeze(-1)
            live, chosen, attention_mask, positions = live[kept], chosen[kept], attention_mask[kept], positions[kept]
            cache.batch_select_indices(kept)
        tokens = chosen.unsqueeze(-1)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(live), 1)], dim=-1)
        positions = positions[:, -1:] + 1


def name_of_cache(policy: Any) -> str:
    """What a model's forward calls its keys and values: in transformers "cache" since 5.24."""
    inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # beneath adapters
    return "cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values"


def accompany(policy: Any, draft: Draft) -> None:
    """A forward of nothing, while other ranks still decode."""
    policy(input_ids=torch.tensor([[draft.pad_id]], device=draft.device), use_cache=False, logits_to_keep=1)
