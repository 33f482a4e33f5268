"""Mistakes in the two supervised trainers: what stands in a row, and what is taken from it."""

from __future__ import annotations

from mutation import Mutation

SUPERVISED = "tests/test_supervised.py::test_"
REWARD = "tests/test_reward_packed.py::test_"

OF_TRAINERS = {
    "a sequence's first token learned from the one before": Mutation(
        "stages/supervised.py",
        "for label in (IGNORED, *labels[1:])])",
        "for label in labels])",
        (SUPERVISED + "a_row_splits_what_trl_packed",),
    ),
    "the state behind a token in place of the one before": Mutation(
        "stages/supervised.py",
        '"states": learned - 1,',
        '"states": learned,',
        (SUPERVISED + "a_sequence_in_a_row_is_as_if_alone",),
    ),
    "SFT by the tokens of a micro-batch": Mutation(
        "stages/supervised.py",
        "items = len(logprobs) if num_items_in_batch is None else num_items_in_batch",
        "items = len(logprobs)",
        (SUPERVISED + "the_loss_is_trls",),
    ),
    "SFT's gradients halved by two ranks": Mutation(
        "stages/supervised.py",
        "loss = loss * self.accelerator.num_processes",
        "loss = loss * 1",
        (SUPERVISED + "the_loss_is_trls",),
    ),
    "scores in the order of lengths": Mutation(
        "reward_models/packed.py",
        "ends[torch.tensor(order)] = torch.tensor(lengths).cumsum(0) - 1",
        "ends[:] = torch.tensor(lengths).cumsum(0) - 1",
        (
            REWARD + "scores_and_gradients_are_those_of_each_sequence",
            REWARD + "the_collator_keeps_chosen_before_rejected",
        ),
    ),
    "positions that go on over sequences": Mutation(
        "reward_models/packed.py",
        '"position_ids": torch.cat([torch.arange(length) for length in lengths])[None],',
        '"position_ids": torch.arange(sum(lengths))[None],',
        (REWARD + "scores_and_gradients_are_those_of_each_sequence",),
    ),
}
