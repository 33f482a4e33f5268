"""Training forwards of a reward model without padding: all sequences of a micro-batch in one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from rlhf.adapters import is_adapted
from rlhf.packing import Packing, packed_inputs, packs


def take_packed(model: nn.Module) -> bool:
    """Have a sequence classifier's forward take what `row_of` makes, if its architecture can; whether it does.

    In the model itself, so that whatever wraps it (DDP, FSDP2, DeepSpeed, adapters) sees a forward of its own.
    """
    bare: Any = model.get_base_model() if is_adapted(model) else model
    if not packs(bare) or getattr(bare, "score", None) is None:
        return False
    bare.forward = MethodType(_forward, bare)
    return True


def _forward(
    self: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    packing: Packing | None = None,
    ends: Tensor | None = None,
    **options: Any,
) -> Any:
    """Scores [sequences, 1] where sequences are packed; else what the class does."""
    if packing is None:
        forward: Any = type(self).forward
        return forward(self, input_ids, attention_mask=attention_mask, position_ids=position_ids, **options)
    trunk = getattr(self, str(self.base_model_prefix))
    found = trunk(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        packing=packing,
        use_cache=False,
    )
    return SequenceClassifierOutput(logits=self.score(found.last_hidden_state[0, ends]))


def row_of(sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Sequences as one row, the shortest first, so that neighbours are of similar length.

    input_ids, position_ids [1, tokens]; lengths, those of the row; ends [sequences], where each one given ends.
    """
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    lengths = [len(sequences[number]) for number in order]
    ends = torch.empty(len(order), dtype=torch.long)
    ends[torch.tensor(order)] = torch.tensor(lengths).cumsum(0) - 1
    return {
        "input_ids": torch.tensor([token for number in order for token in sequences[number]])[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "lengths": lengths,
        "ends": ends,
    }


def scores_of_row(model: nn.Module, row: dict[str, Any]) -> Any:
    """A model's output for what `row_of` made, in the order in which it was given; differentiable."""
    device = row["input_ids"].device
    asked = packed_inputs(row["input_ids"][0], row["position_ids"][0], row["lengths"], device)
    return model(**asked, ends=row["ends"])
