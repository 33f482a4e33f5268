"""What a stage holds in a device's memory, from shapes alone: an estimate, made before anything is loaded.

Counted in bytes, per process, by phase, role and part. A weight costs 4 (float32); one that learns 4 more for its
gradient and 8 for AdamW's two moments (Loshchilov & Hutter 2019), and a bfloat16 copy of 2 while autocast computes with
it. docs/memory.md explains it all; tests compare it with what torch takes. Not counted: the allocator's fragments and
the libraries' own buffers, for which `usable` sets a share aside. Loads no torch.
"""

from rlhf.memory.computation import FRAGMENTS, GIB, LIBRARIES, Computation, usable
from rlhf.memory.estimates import evaluation, ppo, reward, sft
from rlhf.memory.forwards import RolloutLoad, activations, block_bytes, forward, sampling
from rlhf.memory.models import trainable
from rlhf.memory.parts import PARTS, ROLES, Estimate

__all__ = [
    "FRAGMENTS",
    "GIB",
    "LIBRARIES",
    "PARTS",
    "ROLES",
    "Computation",
    "Estimate",
    "RolloutLoad",
    "activations",
    "block_bytes",
    "evaluation",
    "forward",
    "ppo",
    "reward",
    "sampling",
    "sft",
    "trainable",
    "usable",
]
