"""A text classifier of a user's own, in a local directory: safetensors alone, none of its code, nothing is fetched.

Long texts are read in pieces of the model's context, and the piece that is surest counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.quality.flags import classifier_place, labels_of
from rlhf.config import ClassifierConfig, ModelConfig
from rlhf.distributed import device
from rlhf.errors import ArtifactError
from rlhf.pretrained import context_of, first_line, load_pretrained

TOKENS = 8_192  # in a forward, padding among them


class Classifier:
    """What it says of offensive texts."""

    def __init__(self, config: ClassifierConfig, directory: str | None) -> None:
        path = classifier_place(config, directory)
        names = labels_of(config, directory)
        self.labels, self.names = list(names), list(names.values())
        self.threshold = config.threshold
        model = load_pretrained(AutoModelForSequenceClassification, path, ModelConfig(), any_attention=True)
        self.model = model.to(device()).eval()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"classifier {path}: its tokenizer cannot be loaded ({first_line(error)})") from error
        if not self.tokenizer.is_fast or self.tokenizer.pad_token_id is None:
            raise ArtifactError(f"classifier {path}: has no fast tokenizer (tokenizer.json) with a padding token")
        for shape in (self.model.config, self.model.config.get_text_config()):
            if shape.pad_token_id is None:  # by which some models tell where a text ends
                shape.pad_token_id = self.tokenizer.pad_token_id
        self.path = path
        self.context = min(context_of(self.model), self.tokenizer.model_max_length)
        # Each label has a probability of its own, or they share one.
        several = self.model.config.problem_type == "multi_label_classification"
        self.each_by_itself = several or self.model.config.num_labels == 1

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """The surest label of each text and its probability, where that of all labels asked for is high enough."""
        pieces = self.tokenizer(
            list(texts), truncation=True, max_length=self.context, return_overflowing_tokens=True, padding=False
        )
        rows: list[list[int]] = pieces["input_ids"]
        chances = torch.zeros(len(rows), len(self.labels))
        # A piece without tokens says nothing, and no model reads it.
        order = sorted((row for row in range(len(rows)) if rows[row]), key=lambda row: len(rows[row]))
        for batch in _batches(order, [len(row) for row in rows]):
            chances[batch] = self._chances([rows[row] for row in batch])
        together = chances.amax(dim=1) if self.each_by_itself else chances.sum(dim=1)
        surest: dict[int, int] = {}  # text → its surest piece
        for piece, text in enumerate(pieces["overflow_to_sample_mapping"]):
            if text not in surest or together[piece] > together[surest[text]]:
                surest[text] = piece
        return [self._told(chances[surest[text]], float(together[surest[text]])) for text in range(len(texts))]

    def _told(self, chances: Tensor, together: float) -> str | None:
        if together < self.threshold:
            return None
        return f"{self.names[int(chances.argmax())]} ({together:.2f})"

    @torch.no_grad()
    def _chances(self, rows: list[list[int]]) -> Tensor:
        """Probabilities [batch, labels asked for]. Raises ArtifactError where the model fails, in whatever way."""
        inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.model.device)
        try:
            logits = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()
        except Exception as error:
            raise ArtifactError(
                f"classifier {self.path}: cannot read a text ({first_line(error)}); mend its model or its tokenizer"
            ) from error
        probabilities = logits.sigmoid() if self.each_by_itself else logits.softmax(dim=1)
        found: Tensor = probabilities[:, self.labels].cpu()
        if not found.isfinite().all():  # else it would be under no threshold, and flag every text
            raise ArtifactError(f"classifier {self.path}: its scores are not finite; mend its model")
        return found


def _batches(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Rows of ascending length, as many together as fit."""
    batches: list[list[int]] = []
    for row in order:
        if not batches or (len(batches[-1]) + 1) * lengths[row] > TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches
