"""Heads that score: where an architecture has them, under which names others saved them, how a sequence is scored."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PretrainedConfig
from transformers.modeling_layers import GenericForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, MODEL_MAPPING

from rlhf.adapters import is_adapted
from rlhf.batching import position_ids
from rlhf.errors import ArtifactError
from rlhf.packing import packed_inputs, packs
from rlhf.pretrained import tensor_named
from rlhf.store.weights import FOREIGN_HEADS


def head_of(model: nn.Module) -> nn.Linear | None:
    """The linear head `score`, which a causal classifier applies at its last token; None in any other architecture."""
    head = getattr(model, "score", None)
    return head if isinstance(head, nn.Linear) else None


def fresh_head(head: nn.Linear) -> None:
    """Weights of deviation 1/sqrt(hidden + 1) (Stiennon et al. 2020); seed torch before."""
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))


def borrow_head(model: nn.Module, path: Path) -> None:
    """Put the head of a reward model that was saved under another name into a classifier's `score`.

    A bias is taken along. Raises ArtifactError where the directory holds no head: a language model is no reward model.
    """
    head = head_of(model)
    weight = tensor_named(path, FOREIGN_HEADS + r"\.weight") if head is not None else None
    if head is None or weight is None or weight[1].shape != head.weight.shape:
        raise ArtifactError(
            f"model {path}: no head that gives one score (a language model?); give a reward model, or train one on "
            "data.comparisons by leaving reward.use out"
        )
    bias = tensor_named(path, FOREIGN_HEADS + r"\.bias")
    borrowed = nn.Linear(head.in_features, 1, bias=bias is not None, dtype=head.weight.dtype)
    with torch.no_grad():
        borrowed.weight.copy_(weight[1])
        if bias is not None:
            borrowed.bias.copy_(bias[1])
    model.score = borrowed


def token_classifier(shape: PretrainedConfig) -> Any:
    """A class whose head `score` gives one value a token: transformers' own, or one made for an architecture."""
    known: Any = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(shape), None)
    if isinstance(known, type) and issubclass(known, GenericForTokenClassification):
        return AutoModelForTokenClassification
    trunk = cast(Any, MODEL_MAPPING[type(shape)])
    base = next(parent for parent in trunk.__mro__[1:] if parent.__name__.endswith("PreTrainedModel"))
    names = {"base_model_prefix": base.base_model_prefix, "__module__": __name__}
    return type(f"{trunk.__name__}ForValues", (GenericForTokenClassification, base), names)


def scoring_parts(model: Any) -> list[nn.Module]:
    """The modules that `sequence_scores` calls: a model that is shared out answers through these alone."""
    base = model.get_base_model() if is_adapted(model) else model
    if getattr(base, "score", None) is None:
        return [base]
    return [getattr(base, str(base.base_model_prefix)), base.score]


def sequence_scores(
    model: nn.Module, tokens: Tensor, attention_mask: Tensor, device: torch.device | None = None
) -> Tensor:
    """Scores [batch] of a sequence classifier with one label; of a causal one at each row's last attended token.

    tokens, attention_mask [batch, length], right-padded for architectures that are not causal; they go to `device` if
    there is one, and are best on the CPU, where a packing is worked out. The index comes from the mask, not from
    comparing ids with the padding id as a classifier's own pooling does: a sampled response may hold that id.
    """
    device, attention_mask = tokens.device if device is None else device, attention_mask.bool()
    if is_adapted(model):
        model = model.get_base_model()  # the adapters stay in its layers
    head: Any = getattr(model, "score", None)

    def there(part: Tensor) -> Tensor:
        return part.to(device, non_blocking=True)

    if head is None:
        logits: Tensor = model(input_ids=there(tokens), attention_mask=there(attention_mask.long())).logits
        return logits[:, 0].float()
    trunk = getattr(model, str(model.base_model_prefix))
    positions = position_ids(attention_mask)
    if packs(model):
        lengths = attention_mask.sum(-1)
        row = packed_inputs(tokens[attention_mask], positions[attention_mask], lengths.tolist(), device)
        found = trunk(**row, use_cache=False)
        ends = found.last_hidden_state[0, there(lengths.cumsum(0) - 1)]
    else:
        known = inspect.signature(trunk.forward).parameters
        found = trunk(
            input_ids=there(tokens),
            attention_mask=there(attention_mask),
            use_cache=False,
            **({"position_ids": there(positions)} if "position_ids" in known else {}),
        )
        last = (torch.arange(tokens.shape[1], device=tokens.device) * attention_mask).argmax(-1)
        ends = found.last_hidden_state[torch.arange(len(tokens), device=device), there(last)]
    scores: Tensor = head(ends)
    return scores.squeeze(-1).float()
