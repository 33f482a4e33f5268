"""What a layer does between its products: functions of tensors alone, of which a compiler can make a kernel each."""

from __future__ import annotations

import functools
import math
import subprocess
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Norm(NamedTuple):
    """RMSNorm (Zhang & Sennrich 2019): its weight [width] and epsilon, and what is made of them once."""

    weight: Tensor
    epsilon: float
    # On CPUs, else None: the weight times the root of the width [width], and the root of width times epsilon, which is
    # added to a length at right angles.
    scaled: Tensor | None = None
    least: Tensor | None = None


def norm_of(module: Any) -> Norm:
    """What a norm of transformers computes with."""
    weight, epsilon = module.weight.detach(), module.variance_epsilon
    if not weight.is_cpu:
        return Norm(weight, epsilon)
    return Norm(weight, epsilon, weight * math.sqrt(len(weight)), weight.new_tensor(math.sqrt(len(weight) * epsilon)))


def normed(states: Tensor, norm: Norm) -> Tensor:
    """The norm of states [..., width], rounded to their dtype before it is scaled."""
    if states.dtype != norm.weight.dtype:
        found = functional.rms_norm(states.float(), norm.weight.shape, eps=norm.epsilon)
        return norm.weight * found.to(states.dtype)
    if norm.scaled is None or norm.least is None:
        return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.epsilon)
    # By lengths it is four operations where torch has six, each of them dearer than its numbers in decoding.
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return (states / torch.hypot(length, norm.least)).mul_(norm.scaled)


def summed(states: Tensor, added: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The sum of two [rows, hidden], and the sum normed."""
    states = states + added
    return states, normed(states, norm)


def turned(heads: Tensor, queries: int, norms: tuple[Norm, Norm] | None, cosine: Tensor, sine: Tensor) -> Tensor:
    """Heads [rows, heads, width] of queries, keys and as many of values: the first two at their rotary positions.

    norms, where the family has them, are of queries and of keys. cosine, sine [rows, 1, width]: of the sine the first
    half is negative. The result has their dtype; it may be the tensor that was given.
    """
    values = (heads.shape[1] - queries) // 2
    if norms is not None:
        query, key, value = heads.split_with_sizes([queries, values, values], dim=1)
        heads = torch.cat([normed(query, norms[0]), normed(key, norms[1]), value], dim=1)
    if heads.dtype != cosine.dtype:
        heads = heads.to(cosine.dtype)
    both = heads[:, :-values]
    # x cos + turned(x) sin, where turned swaps the halves and negates the first: so does the sign of its sine.
    swapped = both.roll(both.shape[-1] // 2, dims=-1)
    both.mul_(cosine).addcmul_(swapped, sine)
    return heads


def gated(found: Tensor) -> Tensor:
    """SiLU of gates times inputs [rows, mlp], of both behind one another [rows, 2 * mlp]."""
    gate, up = found.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


class Between(NamedTuple):
    """The functions above, as they are or compiled."""

    normed: Callable[[Tensor, Norm], Tensor]
    summed: Callable[[Tensor, Tensor, Norm], tuple[Tensor, Tensor]]
    turned: Callable[[Tensor, int, tuple[Norm, Norm] | None, Tensor, Tensor], Tensor]
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
        with torch.inference_mode():
            made.summed(rows, rows, Norm(rows[0], 1e-6))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"decoding is not compiled ({reason})", RuntimeWarning, stacklevel=2)
        return PLAIN
    return made
