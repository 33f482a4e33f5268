"""TRL's SFTTrainer, where the model can: without padding, and with log-probs of the learned tokens alone.

The loss is TRL's own, to rounding. For several sequences in a row of tokens its trainer computes attention under a mask
of all tokens by all tokens, and on a CPU the head at prompts too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.sft_trainer import SFTTrainer

from rlhf.devices import keep_to_one_gpu
from rlhf.logprobs import row_logprobs
from rlhf.packing import packs
from stages.trainer import Checkpointed

IGNORED = -100  # the label that torch's cross entropy leaves out


def one_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sequences as one row, the shortest first, so that neighbours are of similar length; TRL's packed rows are split.

    input_ids, labels, position_ids [1, tokens]; lengths, those of the row; targets [learned] and states, the place of
    the token before each.
    """
    sequences = sorted((part for row in rows for part in _parts(row)), key=lambda part: len(part[0]))
    labels = torch.tensor([label for _, labels in sequences for label in (IGNORED, *labels[1:])])
    learned = (labels != IGNORED).nonzero().squeeze(-1)
    return {
        "input_ids": torch.tensor([token for tokens, _ in sequences for token in tokens])[None],
        "labels": labels[None],  # whose number the trainer divides by
        "position_ids": torch.cat([torch.arange(len(tokens)) for tokens, _ in sequences])[None],
        "lengths": [len(tokens) for tokens, _ in sequences],
        "targets": labels[learned],
        "states": learned - 1,
    }


def _parts(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    bounds = [0]
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        bounds.append(bounds[-1] + int(length))
    return [(list(row["input_ids"][a:b]), list(row["labels"][a:b])) for a, b in pairwise(bounds)]


class SupervisedTrainer(Checkpointed, SFTTrainer):
    """With our checkpoints, and packed forwards."""

    def __init__(self, *, args: Any, **options: Any) -> None:
        keep_to_one_gpu(args)
        super().__init__(args=args, **options)
        self.packs = packs(self.model)
        if self.packs:
            self.data_collator = one_row

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Nats per learned token: of a micro-batch, or its share of `num_items_in_batch` of all ranks."""
        if not self.packs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        bare: Any = self.model
        logprobs = row_logprobs(bare, inputs, model)
        items = len(logprobs) if num_items_in_batch is None else num_items_in_batch
        loss = -logprobs.sum() / torch.as_tensor(items).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which counts all ranks' tokens, and DDP averages
        return (loss, {}) if return_outputs else loss
