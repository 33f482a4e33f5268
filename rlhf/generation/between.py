"""What a layer does between its products: functions of tensors alone, of which a compiler can make a kernel each."""

from __future__ import annotations

import functools
import subprocess
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Norm = tuple[Tensor, float]  # weight [width], epsilon
HeadNorms = tuple[Tensor, Tensor, float]  # weights of queries and keys [width], epsilon


def normed(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019) of states [..., width], rounded to their dtype before it is scaled."""
    if states.dtype == weight.dtype:
        return functional.rms_norm(states, weight.shape, weight, epsilon)
    return weight * functional.rms_norm(states.float(), weight.shape, eps=epsilon).to(states.dtype)


def summed(states: Tensor, added: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The sum of two [rows, hidden], and the sum normed."""
    states = states + added
    return states, normed(states, weight, epsilon)


def turned(both: Tensor, queries: int, norms: HeadNorms | None, cosine: Tensor, sine: Tensor) -> Tensor:
    """Queries and keys [rows, heads, width], normed where the family does, at their rotary positions.

    Queries come first; cosine, sine [rows, 1, width]: the first half of sine is negative.
    """
    if norms is not None:
        of_query, of_key, epsilon = norms
        parts = normed(both[:, :queries], of_query, epsilon), normed(both[:, queries:], of_key, epsilon)
        both = torch.cat(parts, dim=1)
    # x cos + turned(x) sin, where turned swaps the halves and negates the first: so does the sign of its sine.
    return torch.addcmul(both * cosine, both.roll(both.shape[-1] // 2, dims=-1), sine)


def gated(found: Tensor) -> Tensor:
    """SiLU of gates times inputs [rows, mlp], of both behind one another [rows, 2 * mlp]."""
    gate, up = found.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


class Between(NamedTuple):
    """The functions above, as they are or compiled."""

    normed: Callable[[Tensor, Tensor, float], Tensor]
    summed: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    turned: Callable[[Tensor, int, HeadNorms | None, Tensor, Tensor], Tensor]
    gated: Callable[[Tensor], Tensor]


PLAIN = Between(normed, summed, turned, gated)


@functools.cache
def compiled(device: torch.device) -> Between:
    """The functions compiled by inductor, for any number of rows: made once in a process, at the first call.

    It takes a C compiler, which not every image has: without one they stay as they are, and a warning says so.
    """
    # Never in mode reduce-overhead, which makes graphs of its own. Every size is left open, so that another number of
    # rows is no other function. Without fullgraph, what is compiled too often (more than eight kinds of a function) is
    # computed as it is, and no error.
    make: Any = functools.partial(torch.compile, dynamic=True)
    made = Between(make(normed), make(summed), make(turned), make(gated))
    try:
        rows = torch.ones(3, 8, device=device)
        made.summed(rows, rows, rows[0], 1e-6)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"decoding is not compiled ({reason})", RuntimeWarning, stacklevel=2)
        return PLAIN
    return made
