"""What both ways to vLLM share: seeds of rows, and answers as PPO takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf.generation.noise import uniforms
from rlhf.types import Sampled


def seeds_of(seed: int, step: int, rows: Sequence[int]) -> list[int]:
    """A seed for each row, keyed as the native sampler's noise by (seed, step, row)."""
    found: list[int] = (uniforms(seed, step, rows, 1)[:, 0] * 2**53).long().tolist()
    return found


def as_sampled(answers: Sequence[tuple[list[int], list[float]]], stop_id: int, pad_id: int) -> Sampled:
    """Tokens and their log-probs of each row, padded; the log-probs stand for both of what `Sampled` has."""
    width = max((len(tokens) for tokens, _ in answers), default=0)
    responses = torch.full((len(answers), width), pad_id)
    logprobs = torch.zeros(len(answers), width)
    for row, (tokens, own) in enumerate(answers):
        responses[row, : len(tokens)] = torch.tensor(tokens)
        logprobs[row, : len(tokens)] = torch.tensor(own)
    lengths = torch.tensor([len(tokens) for tokens, _ in answers])
    mask = torch.arange(width) < lengths[:, None]
    finished = ((responses == stop_id) & mask).any(-1)
    return Sampled(responses, logprobs, logprobs, mask, finished)
