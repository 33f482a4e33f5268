"""Which library multiplies float32, by the processor's maker; and a head of one number, which nothing rounds."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from rlhf import products
from rlhf.products import Linear, own_products, packed
from tests.test_products import asked, close

__all__ = ["asked"]  # a fixture


def test_on_intels_processors_onednn_has_what_is_packed_alone(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(products, "is_intels", lambda: True)
    layer, hidden = Linear(32, 24), torch.randn(20, 32, requires_grad=True)
    found = layer(hidden)
    found.sum().backward()
    assert not asked and torch.equal(found, functional.linear(hidden, layer.weight, layer.bias))
    with torch.no_grad(), packed(layer, bfloat16=False):
        close(layer(hidden), found.detach())
    assert len(asked) == 1


def test_a_processors_maker_is_read() -> None:
    found = Path("/proc/cpuinfo").read_text()
    assert products.is_intels() == ("vendor_id\t: GenuineIntel" in found)


def test_a_score_is_not_rounded() -> None:
    """Under autocast as without it, and where a frozen model is held in bfloat16: from its weights as they are."""
    torch.manual_seed(0)
    model = nn.Module()
    model.score, model.other = nn.Linear(64, 1), nn.Linear(64, 1)
    own_products(model)
    assert (type(model.score), type(model.other)) == (products.Score, Linear)
    hidden = 40 * torch.randn(64) + 0.1 * torch.randn(50, 64)
    wanted = functional.linear(hidden, model.score.weight, model.score.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.score(hidden), wanted)
        assert model.other(hidden).dtype == torch.bfloat16
    assert len(wanted.bfloat16().unique()) < 40 <= len(wanted.unique())  # or it would show nothing
    narrow = copy.deepcopy(model.score).to(torch.bfloat16)
    weight, bias = narrow.weight.float(), narrow.bias.float()
    assert torch.equal(narrow(hidden.bfloat16()), functional.linear(hidden.bfloat16().float(), weight, bias))
    assert copy.deepcopy(model.score).double()(hidden.double()).dtype == torch.float64
    model.score(hidden.requires_grad_()).sum().backward()
    assert model.score.weight.grad is not None and hidden.grad is not None
