"""oneDNN's products are torch's to rounding, forward and backward, whatever is asked of them, and torch's elsewhere."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf import products
from rlhf.logprobs import response_logprobs
from rlhf.products import Linear, fillers, linear, own_products, packed, product_of
from rlhf.token_head import TokenHead, head_of_tokens
from tests.test_decoder import policy

# By the machine, not by what is found there: a torch without these operations is to be seen.
ON_X86 = platform.machine() in ("x86_64", "AMD64")
pytestmark = pytest.mark.skipif(not ON_X86, reason="oneDNN's products are taken on x86 alone")
SHAPES = [(1, 16, 16), (7, 64, 48), (33, 320, 17), (2, 3, 40, 24)]  # rows, in, out


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-6 * float(wanted.detach().abs().max().clamp(min=1)), rtol=0)


def operands(*shape: int, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(sum(shape))
    hidden, weight = torch.randn(*shape[:-1], requires_grad=True), torch.randn(shape[-1], shape[-2], requires_grad=True)
    return hidden, weight, torch.randn(shape[-1], requires_grad=True) if bias else None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what oneDNN has been asked to multiply."""
    assert products.has_onednn()  # which multiplies once itself
    monkeypatch.setattr(products, "is_intels", lambda: False)
    shapes: list[tuple[int, ...]] = []
    plain = products._product

    def noted(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append(tuple(hidden.shape))
        return plain(hidden, weight, bias)

    monkeypatch.setattr(products, "_product", noted)
    return shapes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_gradients(shape: tuple[int, ...], bias: bool, asked: list[tuple[int, ...]]) -> None:
    given = operands(*shape, bias=bias)
    upstream = torch.randn(*shape[:-2], shape[-1])
    found, wanted = linear(*given), functional.linear(*given)
    close(found, wanted)
    wanting = [part for part in given if part is not None]
    for ours, torchs in zip(
        torch.autograd.grad(found, wanting, upstream), torch.autograd.grad(wanted, wanting, upstream), strict=True
    ):
        close(ours, torchs)
        assert ours.is_contiguous()
    assert len(asked) == (3 if min(shape[-2:]) >= products.NARROW and upstream.numel() // shape[-1] >= 16 else 2)


def test_this_torch_has_what_is_asked_of_it() -> None:
    assert products.has_onednn()
    assert products.has_onednn(torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_only_the_gradients_that_are_wanted(asked: list[tuple[int, ...]]) -> None:
    hidden, weight, bias = operands(20, 32, 24, bias=True)
    assert bias is not None
    linear(hidden, weight.detach(), bias.detach()).sum().backward()
    assert hidden.grad is not None and weight.grad is None and len(asked) == 2
    linear(hidden.detach(), weight, None).sum().backward()
    assert len(asked) == 4 and weight.grad is not None
    close(weight.grad, torch.ones(24, 20) @ hidden.detach())


def test_rows_in_any_order_of_memory() -> None:
    hidden, weight, _ = operands(20, 32, 24, bias=False)
    for turned in (hidden.t().contiguous().t(), torch.cat([hidden, hidden], -1)[:, :32], hidden[::2]):
        rows = turned.detach().requires_grad_()
        found = linear(rows, weight)
        close(found, functional.linear(rows, weight))
        upstream = torch.randn(24, len(rows)).t()
        for ours, torchs in zip(
            torch.autograd.grad(found, [rows, weight], upstream),
            torch.autograd.grad(functional.linear(rows, weight), [rows, weight], upstream),
            strict=True,
        ):
            close(ours, torchs)


@pytest.mark.parametrize(
    ("hidden", "weight"),
    [
        (torch.ones(4, 32, dtype=torch.float64), torch.ones(24, 32, dtype=torch.float64)),
        (torch.ones(4, 32, dtype=torch.bfloat16), torch.ones(24, 32, dtype=torch.bfloat16)),
        (torch.ones(4, 8), torch.ones(24, 8)),
        (torch.ones(4, 32), torch.ones(1, 32)),
        (torch.ones(0, 32), torch.ones(24, 32)),
        (torch.ones(4, 32, device="meta"), torch.ones(24, 32, device="meta")),
    ],
    ids=["float64", "bfloat16", "narrow", "one output", "no rows", "no data"],
)
def test_others_are_torchs(hidden: Tensor, weight: Tensor, asked: list[tuple[int, ...]]) -> None:
    found = linear(hidden, weight)
    assert not asked and found.dtype == hidden.dtype and found.shape == (len(hidden), len(weight))
    if not hidden.is_meta:
        assert torch.equal(found, functional.linear(hidden, weight))


def test_autocast_rounds_as_ever(asked: list[tuple[int, ...]]) -> None:
    hidden, weight, bias = operands(20, 32, 24, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = linear(hidden, weight, bias), functional.linear(hidden, weight, bias)
    assert not asked and found.dtype == torch.bfloat16 and torch.equal(found, wanted)


def test_without_onednn_all_are_torchs(monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, ...]]) -> None:
    monkeypatch.setattr(products, "has_onednn", lambda *_: False)
    hidden, weight, bias = operands(20, 32, 24, bias=True)
    with packed(Linear(32, 24), bfloat16=False):
        found = linear(hidden, weight, bias)
    found.sum().backward()
    assert torch.equal(found, functional.linear(hidden, weight, bias)) and not asked
    layers = [nn.Linear(32, 24), nn.Linear(32, 16)]
    close(product_of(layers, bfloat16=False)(hidden), torch.cat([layer(hidden) for layer in layers], dim=-1))


def test_torchs_own_switch_turns_it_off(asked: list[tuple[int, ...]]) -> None:
    hidden, weight, bias = operands(20, 32, 24, bias=True)
    switch: Any = torch.backends.mkldnn
    switch.enabled = False
    try:
        assert torch.equal(linear(hidden, weight, bias), functional.linear(hidden, weight, bias)) and not asked
    finally:
        switch.enabled = True


def test_a_torch_that_has_other_operations_multiplies_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> Tensor:
        raise RuntimeError("mkldnn::_linear_pointwise() is missing value for argument 'more'")

    monkeypatch.setattr(products, "_product", other)
    products._works.cache_clear()
    try:
        assert not products.has_onednn()
    finally:
        products._works.cache_clear()


def test_a_processor_without_products_of_bfloat16_reads_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX2 alone: oneDNN's products refuse bfloat16 there, and torch's do not."""
    there = torch.ops.mkldnn
    for name in ("_reorder_linear_weight", "_linear_pointwise"):
        own = getattr(there, name)

        def refusing(given: Tensor, *others: Any, own: Any = own) -> Tensor:
            if given.dtype == torch.bfloat16:
                raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw")
            found: Tensor = own(given, *others)
            return found

        monkeypatch.setattr(there, name, refusing)
    products._works.cache_clear()
    try:
        assert products.has_onednn() and not products.has_onednn(torch.bfloat16)
        torch.manual_seed(0)
        model, hidden = nn.Sequential(nn.Linear(32, 24), nn.Linear(32, 16)), torch.randn(5, 32)
        own_products(model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), packed(model, bfloat16=True):
            together = product_of(list(model), bfloat16=True)(hidden)  # type: ignore[arg-type]
            apart = torch.cat([layer(hidden) for layer in model], dim=-1)
        assert together.dtype == torch.bfloat16
        # A processor's own products of other widths may add up in another order.
        torch.testing.assert_close(together, apart, atol=1e-2, rtol=0)
    finally:
        products._works.cache_clear()


class Other(nn.Linear):
    """A layer of somebody else's."""


def test_a_models_layers_but_for_others_own() -> None:
    model = nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 16, bias=False), Other(16, 16))
    before = copy.deepcopy(model)
    own_products(model)
    assert [type(layer) for layer in model] == [Linear, Linear, Other]
    assert list(model.state_dict()) == list(before.state_dict())
    close(model(torch.ones(3, 32)), before(torch.ones(3, 32)))


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 50, bias=False)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def test_a_head_answers_whichever_it_was() -> None:
    one, other = Causal(), Causal()
    own_products(one)
    assert isinstance(head_of_tokens(one), TokenHead) and isinstance(head_of_tokens(other), TokenHead)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_packed_weights_multiply_alike_and_are_gone_behind(bfloat16: bool) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 3))
    own_products(model)
    hidden = torch.randn(5, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        plain = model(hidden)
        with packed(model, bfloat16):
            ordered = products.has_onednn(torch.bfloat16 if bfloat16 else torch.float32)
            assert (model[0].packed is not None) == ordered and model[1].packed is None  # too narrow
            torch.testing.assert_close(model(hidden), plain, atol=1e-2 if bfloat16 else 1e-6, rtol=0)
    with pytest.raises(ZeroDivisionError), packed(model, bfloat16):
        raise ZeroDivisionError
    assert model[0].packed is None


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("widths", [(48,), (48, 16, 16), (48, 8)], ids=str)
def test_one_product_of_several(widths: tuple[int, ...], bfloat16: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, width, bias=number != 1) for number, width in enumerate(widths)]
    hidden = torch.randn(5, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        wanted = torch.cat([layer(hidden) for layer in layers], dim=-1)
        found = product_of(layers, bfloat16)(hidden)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, atol=1e-2 if bfloat16 else 1e-6, rtol=0)


def test_a_row_is_the_same_beside_any_number_of_others() -> None:
    """Where sums are long enough to be cut, one row alone would be added up otherwise."""
    torch.manual_seed(0)
    multiply, hidden = product_of([nn.Linear(2048, 512)], bfloat16=False), torch.randn(64, 2048)
    whole = multiply(hidden)
    for rows in range(1, 33):
        filled = torch.cat([hidden[:rows], torch.zeros(fillers(rows, hidden.device), 2048)])
        assert torch.equal(multiply(filled)[:rows], whole[:rows]), rows


def test_shapes_come_again(asked: list[tuple[int, ...]]) -> None:
    rows = [fillers(count, torch.device("cpu")) + count for count in range(1, 400)]
    assert all(full >= count for count, full in enumerate(rows, start=1))
    assert rows[:8] == [2, 2, 4, 4, 8, 8, 8, 8] and fillers(0, torch.device("cpu")) == 0
    assert len(set(rows[8:64])) == 7 and len(set(rows)) < 23
    assert fillers(33, torch.device("meta")) == 0
    model, before = policy("llama"), set[tuple[int, ...]]()
    for count in (96, 65, 70):
        tokens = torch.randint(3, 50, (1, count))
        response_logprobs(model, tokens, torch.ones_like(tokens), 33, 1.0).logprobs.sum().backward()
        assert not before or set(asked) == before
        before = set(asked)
    assert len(before) > 5


def test_rows_that_are_none_leave_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for added in (None, lambda *_: 0):
        if added:
            for module in ("packing", "token_head"):
                monkeypatch.setattr(f"rlhf.{module}.fillers", added)
        model = policy("llama")
        tokens, mask = torch.randint(3, 50, (3, 31), generator=torch.Generator().manual_seed(0)), torch.ones(3, 31)
        found = response_logprobs(model, tokens, mask, 20, 1.0, entropy_gradient=True)
        (found.logprobs.sum() + found.entropy.sum()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        close(one, other)


def test_memory_does_not_grow_with_the_lengths_that_were_seen() -> None:
    """Without fillers it grew by 500 MiB here, the first half of it within a hundred batches."""
    command = [sys.executable, str(Path(__file__).with_name("growing.py")), "200"]
    ours = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # set here when it was imported
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 150
