"""How a model is trained on several processes, behind one seam."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the launcher reads engine options without torch
    from torch import Tensor, nn

Writer = Callable[[Path], None]  # writes below a directory, which need not be there yet


class Engine(Protocol):
    """A model, its optimizer and its schedule. Gradients are SUMS over ranks and micro-batches.

    Losses are therefore divided by counts of the whole step (`rlhf.losses`), never averaged. Every rank makes the same
    sequence of calls, with empty work where it has none: under some engines each forward is a collective.
    """

    module: nn.Module  # the bare model: sampling, saving
    name: str  # the wrapper that really runs, for the manifest

    def __call__(self, **inputs: Tensor) -> Tensor:
        """The forward pass of training."""
        ...

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Wraps the forward and backward of one micro-batch; gradients meet at the last of an optimizer step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient."""
        ...

    def norm(self) -> float:
        """The gradient's global norm before clipping, equal on every rank; changes nothing. Every rank calls.

        Behind the last micro-batch of an optimizer step, so that one can look before `step` or `skip`.
        """
        ...

    def step(self) -> float:
        """Clip, update, advance the schedule, clear gradients; the gradient's global norm before clipping.

        A gradient that is not finite is dropped, on every rank alike.
        """
        ...

    def skip(self, steps: int = 1) -> None:
        """Clear gradients and advance the schedule, without an update. Every rank calls."""
        ...

    def rest(self) -> None:
        """The step's updates are over: what is only used in them may wait elsewhere."""
        ...

    def save(self, directory: Path) -> None:
        """Write the weights that learn, the optimizer and the schedule below a directory. Every rank calls."""
        ...

    def snapshot(self) -> Writer | None:
        """A copy of what `save` would write now, for another thread to write while training goes on.

        Every rank calls, here and what is returned: its collectives are those of `rlhf.distributed.group_aside`. None
        where an engine can write no other state than the one that it trains.
        """
        ...

    def load(self, directory: Path) -> None:
        """Take up what `save` wrote. Every rank calls."""
        ...
