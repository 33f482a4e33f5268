"""On a GPU: tied weights' gradient is autograd's, made once without a question; gated MLPs are transformers'."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf.tied import summed
from tests.test_layers import gradients as gradients_of
from tests.test_layers import mlps
from tests.test_tied import Sizes, gradients, loss_of, tied

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("length", [5, 40, 200])
def test_it_is_autograds(length: int, bfloat16: bool) -> None:
    """To the bit, by an attention whose backward adds in a fixed order."""
    pair = [model.to(DEVICE) for model in tied()]
    torch.manual_seed(length)
    tokens = torch.randint(0, 30, (2, length), device=DEVICE)
    for model in pair:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cuda", torch.bfloat16, enabled=bfloat16):
            loss_of(model, tokens).backward()
    assert all(torch.equal(*each) for each in zip(*map(gradients, pair), strict=True))


def test_many_tokens_are_summed_as_torch_does() -> None:
    """More than 3,072, for which torch has a kernel of its own."""
    tokens = torch.randint(0, 32_000, (8192,), device=DEVICE)
    rows, head = torch.randn(8192, 64, device=DEVICE), torch.randn(32_000, 64, device=DEVICE)
    wanted = head + torch.ops.aten.embedding_dense_backward(rows, tokens, 32_000, -1, False)
    assert torch.equal(head.index_add_(0, *summed(tokens, rows, -1)), wanted)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_it_asks_the_device_nothing() -> None:
    _, own = tied()
    loss = loss_of(own.to(DEVICE), torch.randint(0, 30, (2, 9), device=DEVICE))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with Sizes() as sizes:
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (sizes.rows, sizes.sums) == ([18], 0)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_gated_mlp_is_transformers(bfloat16: bool) -> None:
    states, upstream = torch.randn(7, 48, device=DEVICE, requires_grad=True), torch.randn(7, 48, device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16):
        wanted, found = (
            gradients_of(lambda mlp=mlp: mlp(states), [states, *mlp.parameters()], upstream)
            for mlp in (each.to(DEVICE) for each in mlps())
        )
    for each, of_theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, of_theirs, atol=float(of_theirs.abs().max()) * 2e-2, rtol=0)
