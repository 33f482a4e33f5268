"""Weights, gradients and optimizer shared out over processes: torch's fully sharded data parallelism, FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rlhf.engine.learning import Learning
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.sharding import Sharding, autocast, device_of, shards


class FsdpEngine(Learning):
    """See `rlhf.engine.Engine`. Gradients are reduced with every micro-batch, so that none is ever held whole."""

    def __init__(self, module: nn.Module, options: OptimizerOptions, sharding: Sharding) -> None:
        super().__init__(sharding.shard(module.train()), options)
        self.parts = shards(self.module)
        self.name = type(self.parts[0]).__name__  # the outermost
        self.device = device_of(self.module)

    def __call__(self, **inputs: Any) -> Any:
        """The forward pass of training."""
        with autocast(self.module, self.options.bfloat16):
            return self.module(**inputs)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Between copies of the shards, where there are any, gradients meet at the last."""
        for part in self.parts:
            part.set_requires_all_reduce(last, recurse=False)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient; FSDP is told to sum."""
        loss.backward()  # type: ignore[no-untyped-call]
