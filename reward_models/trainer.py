"""Bradley-Terry training on TRL's RewardTrainer, with what it lacks: ties, weights, label smoothing.

Pairs come tokenised by `rlhf.tokenization`, as scoring in PPO tokenises them: TRL would append an end to cut responses
and drop long pairs without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from reward_models.packed import row_of, scores_of_row, take_packed
from rlhf.batching import pad
from rlhf.devices import keep_to_one_gpu
from rlhf.losses import bradley_terry_loss


@dataclass(frozen=True)
class PreferenceCollator:
    """Batches pairs: the first half of the rows are the chosen sequences, the second the rejected ones."""

    pad_id: int
    packed: bool = False  # the model takes packed sequences

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """target, weight [pairs]; input_ids, attention_mask [2 * pairs, length], or what `packed.row_of` makes."""
        rows = [pair["chosen_ids"] for pair in pairs] + [pair["rejected_ids"] for pair in pairs]
        return {
            **(row_of(rows) if self.packed else self._padded(rows)),
            "target": torch.tensor([pair["target"] for pair in pairs], dtype=torch.float32),
            "weight": torch.tensor([pair["weight"] for pair in pairs], dtype=torch.float32),
        }

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        tokens, mask = pad(rows, self.pad_id, "right")
        return {"input_ids": tokens, "attention_mask": mask.long()}


class BradleyTerryTrainer(RewardTrainer):
    """Minimises `rlhf.losses.bradley_terry_loss` plus a pull of both scores towards zero.

    pad_id: of the padding, where the model takes no packed sequences.
    """

    def __init__(
        self, *, pad_id: int, label_smoothing: float, center: float, model: Any, args: Any, **options: Any
    ) -> None:
        keep_to_one_gpu(args)
        collator = PreferenceCollator(pad_id, take_packed(model))
        super().__init__(model=model, args=args, data_collator=collator, **options)
        self.label_smoothing = label_smoothing
        self.center = center

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean over the pairs of a micro-batch."""
        if "ends" in inputs:
            outputs = scores_of_row(model, inputs)
        else:
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        losses = bradley_terry_loss(
            chosen,
            rejected,
            label_smoothing=self.label_smoothing,
            weight=inputs["weight"],
            target=inputs["target"],
        )
        # Bradley-Terry knows differences alone; without this the scores' level drifts (Eisenstein et al. 2023).
        loss = losses.mean() + self.center * (chosen + rejected).square().mean()
        votes = inputs["target"] != 0.5
        with torch.no_grad():
            mode = "train" if model.training else "eval"
            self._metrics[mode]["accuracy"].append(float((chosen > rejected)[votes].float().mean().nan_to_num(0.5)))
            self._metrics[mode]["margin"].append(float((chosen - rejected)[votes].mean().nan_to_num(0.0)))
        return (loss, outputs) if return_outputs else loss


__all__ = ["BradleyTerryTrainer", "PreferenceCollator", "RewardConfig"]
