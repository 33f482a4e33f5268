"""Randomness that belongs to a token, not to a process: the same prompt gets the same noise wherever it is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64-bit integers that scatters their bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def uniforms(seed: int, step: int, rows: Sequence[int], length: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [batch, length], keyed by (seed, step, row, position).

    rows are the prompts' indices in the step's global batch, so that the result does not depend on the number of
    ranks or on how they are cut.
    """
    state = np.zeros((len(rows), length), dtype=np.uint64)
    keys = (
        np.full_like(state, seed % 2**64),
        np.full_like(state, step % 2**64),
        np.asarray(rows, dtype=np.int64).astype(np.uint64)[:, None] + np.zeros_like(state),
        np.arange(length, dtype=np.uint64)[None, :] + np.zeros_like(state),
    )
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        for key in keys:
            state = _mix((state ^ key) + _GOLDEN)
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) / 2.0**53)
