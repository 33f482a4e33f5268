"""Replicated training: one process alone, or torch's DistributedDataParallel over several."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlhf.distributed import world_size
from rlhf.engine.learning import Learning
from rlhf.engine.optimizer import OptimizerOptions

# torch 2.13 has a new name for it, and warns of the old one.
_KNOWN = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers"


class DdpEngine(Learning):
    """See `rlhf.engine.Engine`."""

    def __init__(self, module: nn.Module, options: OptimizerOptions) -> None:
        super().__init__(module.train(), options)
        self.wrapped: Callable[..., Any] = module
        self.device = next(module.parameters()).device
        if world_size() > 1:
            own = None if self.device.index is None else [self.device.index]
            # The buffers of these models are constants, and sending them would add a collective to every forward.
            # Gradients live in the buckets that are sent: beside them they would take as much memory once more.
            settings: dict[str, Any] = {"gradient_as_bucket_view": True, SYNC_BUFFERS: False}
            self.wrapped = DistributedDataParallel(module, device_ids=own, **settings)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=options.bfloat16):
                warm_buckets(self.wrapped, self.device)
                # Once more, and gradients are where they are sent from. Without them micro-batches that are not sent
                # would make others beside the buckets, until the first that is.
                warm_buckets(self.wrapped, self.device, keep=True)
        self.name = type(self.wrapped).__name__

    def __call__(self, **inputs: Any) -> Any:
        """The forward pass of training."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bfloat16):
            return self.wrapped(**inputs)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Without communication but for the last one: DDP decides in the forward, so it must stand inside."""
        apart = isinstance(self.wrapped, DistributedDataParallel) and not last
        with self.wrapped.no_sync() if apart else nullcontext():  # type: ignore[attr-defined]
            yield

    def _clear(self) -> None:
        """Gradients of DDP's stay where they are: set to None, they would be made once more beside its buckets."""
        if isinstance(self.wrapped, DistributedDataParallel):
            self.optimizer.zero_grad(set_to_none=False)
            self.total = None
        else:
            super()._clear()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, undoing DDP's average over ranks."""
        (loss * world_size()).backward()  # type: ignore[no-untyped-call]


def warm_buckets(model: DistributedDataParallel, device: torch.device, keep: bool = False) -> None:
    """One backward whose gradient is thrown away, through a model of token ids that gives logits, and perhaps values.

    DDP cuts its buckets anew after the first backward, and sums of floats depend on the cut. Made before the first
    step, the new cut is that of all steps, also of those after a resume. keep: gradients stay, as zeros.
    """
    tokens = torch.zeros((1, 2), dtype=torch.long, device=device)
    apart = model.require_backward_grad_sync
    model.require_backward_grad_sync = True
    output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    values = getattr(output, "state_values", None)  # of a head beside the logits
    whole = output.logits.float().sum() + (0.0 if values is None else values.sum())
    (whole * 0.0).backward()
    model.require_backward_grad_sync = apart
    model.zero_grad(set_to_none=not keep)
