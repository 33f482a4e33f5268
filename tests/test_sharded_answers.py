"""Models that are shared out and only answer: FSDP2 notes the order of forwards for a backward that never comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.distributed import join_process_group
from rlhf.sharding import Sharding

SHAPE = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def sharding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sharding]:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    join_process_group(alone=True)
    try:
        yield Sharding(init_device_mesh("cpu", (1,)))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("torch_is_older", [False, True])
def test_the_order_of_forwards_is_forgotten(
    torch_is_older: bool, sharding: Sharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch 2.11 and 2.12 have no method for it."""
    if torch_is_older:
        monkeypatch.delattr(FSDPModule, "reset_iter_state", raising=False)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        wanted = model(tokens).logits
        sharding.shard_frozen(model)
        for _ in range(3):
            torch.testing.assert_close(model(tokens).logits, wanted)
            state = model._get_fsdp_state()
            groups = [each._fsdp_param_group for each in state._state_ctx.all_states]
            assert len(groups) == 3 and not any(group._post_forward_indices for group in groups)
            assert state._comm_ctx.post_forward_order == []
