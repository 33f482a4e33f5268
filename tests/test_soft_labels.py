"""A soft label from a file to the loss and to the held-out figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data import mapped
from data.formats import as_record
from data.formats_preferences import parse_preference
from reward_models.judging import calibration_error, held_out_of
from reward_models.pairs import encode_comparison
from rlhf.types import Comparison, Prompt
from tests.test_models import tiny_tokenization

SOFT = Comparison(Prompt("p"), "a", "b", target=0.75, weight=0.5)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"target": 0.25}, "target=0.25 says that rejected is better; swap both and give 0.75"),
        ({"target": 1.5}, "target=1.5 is no probability; give P"),
        ({"target": -1}, "target=-1 is not a number from 0 up"),
        ({"target": "high"}, "target='high' is not a number"),
        ({"target": 0.75, "tie": True}, "tie and target=0.75 cannot both say who wins"),
        ({"target": 0.75, "votes": [{"prefers": "tie"}]}, "votes and target cannot both say"),
    ],
)
def test_what_is_no_soft_label_is_told(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("(", r"\(")):
        parse_preference({"prompt": "p", "chosen": "a", "rejected": "b", **fields})


def test_it_reaches_the_loss() -> None:
    row = encode_comparison(SOFT, tiny_tokenization())
    assert (row["target"], row["weight"]) == (0.75, 0.5)


def test_it_is_kept_on_disk_and_seen_by_fingerprints(tmp_path: Path) -> None:
    plain = Comparison(SOFT.prompt, SOFT.chosen, SOFT.rejected, weight=0.5)
    mapped.write_examples(tmp_path / "rows.arrow", [(SOFT, "p"), (plain, "p")], list)
    assert list(mapped.MappedExamples(tmp_path / "rows.arrow", "comparisons")) == [SOFT, plain]
    identities = mapped.identities_of([SOFT, plain])
    assert (identities[0] != identities[1]).any()
    assert parse_preference(as_record(SOFT)) == [SOFT]


def test_held_out_figures_of_soft_labels_are_expectations_over_votes() -> None:
    """A pair with a target of 3 in 4 is as three votes for the one and one for the other, but for the accuracy."""
    scores = torch.tensor([1.3, -0.2, 0.4, 0.0, 0.0, 0.9], dtype=torch.float64)
    soft = held_out_of(scores, [0.75, 0.75, 0.5])
    assert (soft.votes, soft.correct) == (2, 1)
    differences = [1.3, 1.3, 1.3, -1.3, -0.2, -0.2, -0.2, 0.2]
    assert soft.log_loss == pytest.approx(np.mean([math.log1p(math.exp(-d)) for d in differences]))
    voted = calibration_error(torch.tensor(differences, dtype=torch.float64))
    assert soft.calibration_error == pytest.approx(voted)


def test_held_out_figures_of_plain_votes_leave_out_ties() -> None:
    scores = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0, 0.4])
    found = held_out_of(scores, [1.0, 1.0, 0.5])
    assert (found.votes, found.correct, found.accuracy) == (2, 1, 0.5)
    assert found.margin == pytest.approx(0.0)
