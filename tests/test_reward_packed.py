"""Packed, a reward model trains as each sequence alone would have it: scores and gradients, adapters too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_packing import PAD, VOCABULARY, gradients, shape_of
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from reward_models.packed import row_of, scores_of_row, take_packed
from reward_models.trainer import PreferenceCollator
from rlhf.adapters import add_lora
from rlhf.config import LoraConfig
from rlhf.packing import ARCHITECTURES, accept

pytestmark = [  # what peft asks for, and what it says of GPT-2
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
LENGTHS = [20, 3, 11, 12, 1, 30, 5, 30]
# The last one's tokens include the padding's, as a sampled response may: what is real is known by where it stands.
CHANCE = torch.Generator().manual_seed(0)
ROWS = [torch.randint(3, VOCABULARY, (length,), generator=CHANCE).tolist() for length in LENGTHS[:-1]]
ROWS.append([5, 6] * 14 + [PAD, PAD])


def classifier(architecture: str) -> Any:
    torch.manual_seed(0)
    made = AutoModelForSequenceClassification.from_config(shape_of(architecture), attn_implementation="sdpa")
    made.config.num_labels = 1
    made.score = nn.Linear(made.config.hidden_size, 1, bias=False)
    return made.eval()


def alone(model: Any, row: list[int]) -> Tensor:
    """The head at a sequence's last token."""
    trunk = getattr(model, model.base_model_prefix)
    hidden = trunk(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state
    score: Tensor = model.score(hidden[0, -1])[0]
    return score


@pytest.mark.parametrize("adapted", [False, True], ids=["all weights", "adapters"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_gradients_are_those_of_each_sequence(architecture: str, adapted: bool) -> None:
    plain = classifier(architecture)
    packing = copy.deepcopy(plain)
    accept(packing)
    models = [plain, packing]
    if adapted:
        torch.manual_seed(1)
        models[0] = add_lora(plain, LoraConfig(rank=4), "reward")
        models[1] = add_lora(packing, LoraConfig(rank=4), "reward")
        for to, of in zip(models[1].parameters(), models[0].parameters(), strict=True):
            of.data += 0.01 * torch.randn_like(of)  # or what adapters add were zero
            to.data.copy_(of.data)
    assert take_packed(models[1]) and not take_packed(models[0])
    found = [torch.stack([alone(plain, row) for row in ROWS]), scores_of_row(models[1], row_of(ROWS)).logits[:, 0]]
    for scores in found:
        (scores.square() @ torch.linspace(-1, 1, len(ROWS))).backward()
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    assert any(gradient.any() for gradient in gradients(models[0]))
    for mine, theirs in zip(*(gradients(model) for model in reversed(models)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5 * float(theirs.abs().max().clamp(min=1e-3)), rtol=0)
    # Whoever calls the model as ever gets what it always answered.
    tokens = torch.tensor([ROWS[5]])
    with torch.no_grad():
        torch.testing.assert_close(models[1](input_ids=tokens).logits, models[0](input_ids=tokens).logits)


def test_the_collator_keeps_chosen_before_rejected() -> None:
    pairs: list[dict[str, Any]] = [
        {"chosen_ids": ROWS[i], "rejected_ids": ROWS[i + 1], "target": 1.0, "weight": 1.0} for i in (0, 2, 4)
    ]
    packed, padded = PreferenceCollator(PAD, True)(pairs), PreferenceCollator(PAD)(pairs)
    rows = [padded["input_ids"][i, : padded["attention_mask"][i].sum()].tolist() for i in range(6)]
    assert rows == [ROWS[i] for i in (0, 2, 4, 1, 3, 5)]
    assert packed["input_ids"][0, packed["ends"]].tolist() == [row[-1] for row in rows]
    assert sum(packed["lengths"]) == packed["input_ids"].shape[1] == padded["attention_mask"].sum()
    assert packed["lengths"] == sorted(map(len, rows))
    assert torch.equal(packed["target"], padded["target"])
