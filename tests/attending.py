"""Attention written out beside torch's, of 640 tokens in sequences of one length or of many, turn by turn.

python tests/attending.py [THREADS] [ROUNDS]
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf import packing
from rlhf.heap import keep_freed

TOKENS, WIDTH = 640, 64
LENGTHS = (8, 16, 32, 64, 96, 128, 160, 200)
HEADS = ((8, 4), (14, 2), (8, 8))  # of queries, of keys


def parts(lengths: list[int], heads: tuple[int, int]) -> tuple[list[Tensor], packing.Packing, Tensor]:
    """Queries, keys and values that learn, laid out as projections give them; their packing; a gradient."""
    tokens = sum(lengths)
    kinds = (torch.randn(1, tokens, n, WIDTH).transpose(1, 2).requires_grad_() for n in (heads[0], heads[1], heads[1]))
    return list(kinds), packing.pack(lengths, torch.device("cpu")), torch.randn(1, tokens, heads[0], WIDTH)


def seconds(ways: dict[bool, Callable[[], object]], rounds: int) -> list[float]:
    """Medians: written out, torch's."""
    own, taken = packing.is_short, {way: list[float]() for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            packing.is_short = lambda *_, way=way: way
            started = time.perf_counter()
            work()
            taken[way].append(time.perf_counter() - started)
    packing.is_short = own
    return [sorted(taken[way])[rounds // 2] for way in (True, False)]


def main(threads: int = 2, rounds: int = 25) -> None:
    """Print milliseconds of both, and their ratio."""
    torch.set_num_threads(threads)
    keep_freed()
    chance = random.Random(0)
    print(f"{'heads':>8}{'length':>12}{'forward':>25}{'and backward':>25}   ms written out, torch's, their ratio")
    for heads in HEADS:
        for longest in LENGTHS:
            for shortest in (longest, 3 * longest // 4 + 1):
                lengths = sorted(chance.randint(shortest, longest) for _ in range(TOKENS // longest))
                given, where, upstream = parts(lengths, heads)

                def forward(given: list[Tensor] = given, where: packing.Packing = where) -> Tensor:
                    return packing.attend(given[0], given[1], given[2], None, where)

                def both(given: list[Tensor] = given, upstream: Tensor = upstream, forward=forward) -> object:  # type: ignore[no-untyped-def]
                    return torch.autograd.grad(forward(), given, upstream)

                with torch.no_grad():
                    alone = seconds(dict.fromkeys((True, False), forward), rounds)
                found = [alone, seconds(dict.fromkeys((True, False), both), rounds)]
                cells = "".join(f"{a * 1e3:9.2f}{b * 1e3:9.2f}{a / b:7.2f}" for a, b in found)
                print(f"{heads[0]:5}/{heads[1]}{shortest:8}-{longest:3}{cells}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
