"""Mistakes in sampling: slots, graphs, draws, servers and their weights."""

from __future__ import annotations

from mutation import ALONE, MASKED, STOPS, UPDATE, Mutation

OF_SAMPLING: dict[str, Mutation] = {
    "the mask one token too long": Mutation(
        "rlhf/generation/draft.py",
        MASKED,
        "mask = torch.arange(width) <= lengths[:, None]",
        (UPDATE + "completions_say_what_was_sampled", STOPS),
    ),
    "the mask one token too short": Mutation(
        "rlhf/generation/draft.py",
        MASKED,
        "mask = torch.arange(width) < (lengths[:, None] - 1).clamp(min=1)",
        (UPDATE + "experience_is_what_each_row_gives_alone", STOPS),
    ),
    "the stop token left out of the mask": Mutation(
        "rlhf/generation/draft.py",
        MASKED + "\n        finished = ((responses == self.stop_id) & mask).any(-1)\n",
        "finished = responses[torch.arange(len(lengths)), lengths - 1] == self.stop_id\n"
        "        mask = torch.arange(width) < (lengths - finished.long()).clamp(min=1)[:, None]\n",
        (UPDATE + "completions_say_what_was_sampled", "tests/test_ppo_variants.py::test_the_stop_token_counts"),
    ),
    "a sequence that leaves its cache behind": Mutation(
        "rlhf/generation/continuous.py",
        "            self.slots.move(source, target, int(self.lengths[source]))\n",
        "",
        ("tests/test_packing.py::test_refilled_slots_sample_what_a_padded_batch_does[llama-all]",),
    ),
    "a prompt read for the first of its responses alone": Mutation(
        "rlhf/generation/continuous.py",
        "        self.slots.copy(*(part.to(device, non_blocking=True) for part in (source, target)))\n",
        "        del source, target\n",
        ("tests/test_packing.py::test_a_prompt_that_several_answer_is_read_once[256]",),
    ),
    "a graph that sees a token less than there is": Mutation(
        "rlhf/generation/graphs.py",
        "additive_mask(positions + 1, longest, slots.kind)",
        "additive_mask(positions.clamp(min=1), longest, slots.kind)",
        ("tests/test_graphs.py::test_samples_are_those_of_plain_decoding[llama-{}]",),
    ),
    "values that are keys": Mutation(
        "rlhf/generation/slots.py",
        "memory.as_strided(shape, strides, memory.storage_offset() + groups * width)",
        "memory.as_strided(shape, strides)",
        ("tests/test_packing.py::test_refilled_slots_sample_what_a_padded_batch_does[llama-all]",),
    ),
    "a table of rotary positions that should change": Mutation(
        "rlhf/generation/decoder.py",
        '"default") in CHANGING',
        '"default") in ()',
        ("tests/test_decoder.py::test_samples_where_rotary_positions_change",),
    ),
    "a norm by lengths whose epsilon is not of the width": Mutation(
        "rlhf/generation/between.py",
        "weight.new_tensor(math.sqrt(len(weight) * epsilon))",
        "weight.new_tensor(math.sqrt(epsilon))",
        ("tests/test_decoder.py::test_a_norm_by_lengths_is_a_norm[0.001]",),
    ),
    "a draw that forgets the parts before its own": Mutation(
        "rlhf/generation/choice.py",
        ".add_(cumulative.gather(-1, part))",
        "",
        ("tests/test_choice.py::test_choose_is_inversion_in_plain[1000-1.0]",),
    ),
    "a draw from what is no number that leaves the vocabulary": Mutation(
        "rlhf/generation/choice.py",
        ".clamp_(max=size - 1)  # where",
        "  # where",
        ("tests/test_choice.py::test_choose_ends_no_run[300-1.0]",),
    ),
    "weights that a server keeps after the policy has learned": Mutation(
        "rlhf/generation/vllm.py",
        "        self.updates += 1\n",
        "",
        ("tests/test_generation_server.py::test_servers_sample_from_the_weights_that_the_policy_has_now[1-False]",),
    ),
    "a batch kept that a server without the weights has sampled": Mutation(
        "rlhf/generation/vllm.py",
        "            if from_main(self._state)[0]:\n",
        "            if answers:\n",
        ("tests/test_generation_server.py::test_a_server_that_has_lost_the_weights_gets_them_again_and_answers_anew",),
    ),
    "what top-p kept left out": Mutation(
        "rlhf/generation/draft.py",
        "Sampled(responses, logprobs, logprobs - log_kept, mask, finished)",
        "Sampled(responses, logprobs, logprobs, mask, finished)",
        (ALONE + "[weights-full]",),
    ),
}
