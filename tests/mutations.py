"""Mistakes made on purpose, and the tests that must see each: what `tests/mutate.py` plays through.

A mutation replaces one piece of text, which must stand in its file exactly once; where the code has changed, so must
the mutation. Most are mistakes that PPO implementations have really had.
"""

from __future__ import annotations

from mutations_of_formulas import OF_FORMULAS
from mutations_of_layers import OF_LAYERS
from mutations_of_sampling import OF_SAMPLING
from mutations_of_steps import OF_STEPS
from mutations_of_trainers import OF_TRAINERS

MUTATIONS = OF_FORMULAS | OF_LAYERS | OF_SAMPLING | OF_STEPS | OF_TRAINERS
