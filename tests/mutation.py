"""What a mistake made on purpose is, and the tests that several of them name."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One mistake. Every test named must fail, in one of its cases at least."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


UPDATE = "tests/test_ppo_update.py::test_"
VARIANTS = "tests/test_ppo_variants.py::test_losses_and_gradients_of_a_step_are_those_of_single_sequences"
ALONE = "tests/test_ppo_variants.py::test_experience_is_what_each_row_gives_alone"
TARGETS = "tests/test_ppo_targets.py::test_"
DEFINED = TARGETS + "targets_are_the_definition[99.0-{}]"
LOSSES = "tests/test_losses.py::test_"
ADVANTAGES = "tests/test_advantages.py::test_"
TWO = "tests/test_two_processes.py::test_"
STAGE = "tests/test_ppo_stage.py::test_"
SAFETY, FAULTS = "tests/test_safety.py::test_", "tests/test_faults.py::test_"
STOPS = "tests/test_generation.py::test_a_stop_ends_a_row_and_its_work"
MASKED = "mask = torch.arange(width) < lengths[:, None]"
