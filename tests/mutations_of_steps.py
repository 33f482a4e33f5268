"""Mistakes around the formulas: log-probs, updates, ranks, models and the stage."""

from __future__ import annotations

from mutation import ALONE, FAULTS, SAFETY, STAGE, TWO, UPDATE, VARIANTS, Mutation

OF_STEPS: dict[str, Mutation] = {
    "the KL's sign in the loss": Mutation(
        "rlhf/ppo/objective.py",
        "loss = loss + targets.kl_coef * divergence",
        "loss = loss - targets.kl_coef * divergence",
        (VARIANTS + "[k2 in the loss-False]",),
    ),
    "the loss by each rank's own tokens": Mutation(
        "rlhf/ppo/update.py",
        "float(every.mask[rows].sum())",
        "max(1.0, float(every.mask[own_share(every, rows)].sum()))",
        (TWO + "statistics_are_equal_on_every_rank[ragged]",),
    ),
    "a rank that takes another's share of a minibatch": Mutation(
        "rlhf/ppo/update.py",
        "deal(lengths, world_size())[rank()]",
        "deal(lengths, world_size())[0]",
        (TWO + "weights_are_equal_after_the_step[ragged]",),
    ),
    "figures given back to another row": Mutation(
        "rlhf/ppo/scoring.py",
        "own = order[self.begin : self.begin + len(self.own)]",
        "own = order[: len(self.own)]",
        (TWO + "figures_of_each_token_are_equal[old_logprobs-ragged, sampled elsewhere]",),
    ),
    "rows scored by the rank that sampled them": Mutation(
        "rlhf/ppo/scoring.py",
        "self.hands = deal(costs, world_size())",
        "self.hands = [each.tolist() for each in torch.arange(len(every)).chunk(world_size())]",
        (TWO + "ranks_score_about_as_many_tokens",),
    ),
    "sequences that begin a token late for the kernel": Mutation(
        "rlhf/packing.py",
        "starts = torch.tensor(bounds, dtype=torch.int32)",
        "starts = torch.tensor([0, *(bound + 1 for bound in bounds[1:-1]), bounds[-1]], dtype=torch.int32)",
        ("tests/test_varlen.py::test_logprobs_and_gradients[llama-flash]", "tests/test_varlen.py::test_scores[torch]"),
    ),
    "an optimizer whose state is put away and never renewed": Mutation(
        "rlhf/engine/learning.py",
        "Offloaded(self._moments, changing=True)",
        "Offloaded(self._moments, changing=False)",
        ("tests/test_offload.py::test_steps_are_bit_for_bit_what_they_are_without[offload2]",),
    ),
    "a score given early to another row": Mutation(
        "rlhf/ppo/early.py",
        "dict(zip(rows, zip(completions, scores, strict=True), strict=True))",
        "dict(zip(rows, zip(completions, scores.flip(0), strict=True), strict=True))",
        ("tests/test_early_scores.py::test_scores_are_the_same_and_so_is_their_sum[servers]",),
    ),
    "gradients averaged over ranks": Mutation(
        "rlhf/engine/ddp.py",
        "(loss * world_size()).backward()",
        "loss.backward()",
        (TWO + "statistics_are_equal_on_every_rank[ragged]",),
    ),
    "gradients averaged over shards": Mutation(
        "rlhf/sharding.py",
        "            self._cut(block)\n        if",
        "            self._cut(block).set_gradient_divide_factor(2.0)\n        if",
        (TWO + "statistics_are_equal_on_every_rank[ragged, fsdp]",),
    ),
    "gradients averaged by DeepSpeed": Mutation(
        "rlhf/engine/zero.py",
        "self.engine.backward(loss * world_size(), scale_wrt_gas=False)",
        "self.engine.backward(loss, scale_wrt_gas=False)",
        (TWO + "statistics_are_equal_on_every_rank[ragged, zero3]",),
    ),
    "Adam's moments forgotten by a checkpoint": Mutation(
        "rlhf/engine/learning.py",
        "state[own][key] for key in",
        "state[own][key].clone() for key in",
        (STAGE + "stopped_and_resumed_is_bit_for_bit[rloo]",),
    ),
    "a checkpoint of weights that learn on": Mutation(
        "rlhf/engine/learning.py",
        "state: Any = stager.stage(self._state())",
        "state: Any = self._state()",
        ("tests/test_checkpoints_aside.py::test_a_copy_stays_what_it_was_while_the_engine_learns_on",),
    ),
    "noise by the row on its rank": Mutation(
        "rlhf/ppo/experience.py",
        "actors.generator.sample(prompt_tokens, rows, seed",
        "actors.generator.sample(prompt_tokens, range(len(prompts)), seed",
        (TWO + "each_rank_has_its_rows_and_samples_the_same_tokens[ragged]",),
    ),
    "old log-probs of the reference": Mutation(
        "rlhf/ppo/experience.py",
        "        old_logprobs=own.get(OLD, sampled.logprobs),\n",
        "        old_logprobs=own[REFERENCE],\n",
        (UPDATE + "the_first_update_is_on_policy", ALONE + "[weights-full]"),
    ),
    "old log-probs of the policy as it is now": Mutation(
        "rlhf/ppo/objective.py",
        "            of(experience.old_logprobs),\n",
        "            new.logprobs.detach(),\n",
        (VARIANTS + "[gae-False]",),
    ),
    "the temperature forgotten": Mutation(
        "rlhf/logprobs.py",
        "Asked(forward.targets[0], temperature, entropy_gradient)",
        "Asked(forward.targets[0], 1.0, entropy_gradient)",
        (UPDATE + "experience_is_what_each_row_gives_alone", UPDATE + "the_first_update_is_on_policy"),
    ),
    "log-probs of the next token": Mutation(
        "rlhf/logprobs.py",
        "else output.logits[:, :-1]).float() / temperature",
        "else output.logits[:, 1:]).float() / temperature",
        ("tests/test_logprobs.py::test_response_logprobs_come_from_the_position_before",),
    ),
    "packed log-probs of the next token": Mutation(
        "rlhf/logprobs.py",
        "(places[:, -response_length:][real] - 1)",
        "(places[:, -response_length:][real])",
        (UPDATE + "experience_is_what_each_row_gives_alone", VARIANTS + "[gae on the trunk-False]"),
    ),
    "the value at the token itself": Mutation(
        "rlhf/logprobs.py",
        "return output[:, -self.shape[1] - 1 : -1]",
        "return output[:, -self.shape[1] :]",
        ("tests/test_logprobs.py::test_response_values_come_from_the_position_before",),
    ),
    "packed sequences that see each other": Mutation(
        "rlhf/short_attention.py",
        "(_ordered(part, block, groups) for part in (query, key, value))",
        "(_ordered(part, block, groups).roll(0 if part is query else groups, 0) for part in (query, key, value))",
        (
            UPDATE + "experience_is_what_each_row_gives_alone",
            "tests/test_packing.py::test_policy[llama-False-16777216]",
        ),
    ),
    "the entropy's gradient without its sign": Mutation(
        "rlhf/token_head.py",
        ".mul_(-of_entropy)",
        ".mul_(of_entropy)",
        ("tests/test_packing.py::test_policy[llama-True-16777216]",),
    ),
    "a head's chunks that all have the first chunk's targets": Mutation(
        "rlhf/token_head.py",
        "gradient_of(logits, all_targets[part], found[part]",
        "gradient_of(logits, all_targets[: len(rows)], found[part]",
        ("tests/test_packing.py::test_policy[llama-False-291]",),
    ),
    "prompts' responses sampled out of order": Mutation(
        "rlhf/ppo/experience.py",
        "        prompt * group + response\n",
        "        response * config.prompts_per_step + prompt\n",
        ("tests/test_ppo_toolbox.py::test_responses_to_a_prompt_stay_together[2]",),
    ),
    "entropy punished": Mutation(
        "rlhf/ppo/objective.py",
        "loss = loss - config.entropy_bonus * entropy",
        "loss = loss + config.entropy_bonus * entropy",
        (VARIANTS + "[entropy bonus-False]",),
    ),
    "an entropy bonus without a gradient": Mutation(
        "rlhf/ppo/update.py",
        "config.generation.temperature, config.entropy_bonus > 0",
        "config.generation.temperature, False",
        (VARIANTS + "[entropy bonus-False]",),
    ),
    "the reference trained along": Mutation(
        "stages/cast.py",
        "else freeze(load_policy(*sources), recipe, sharding)",
        "else model",
        (STAGE + "the_reference_stays_what_it_was[full]",),
    ),
    "the reference with the policy's adapters": Mutation(
        "rlhf/adapters.py",
        "with self.model.disable_adapter():  # type: ignore[operator]",
        "with torch.enable_grad():",
        (STAGE + "the_reference_stays_what_it_was[lora]", ALONE + "[rloo-lora]"),
    ),
    "dropout on": Mutation(
        "rlhf/models.py",
        "            module.p = 0.0\n",
        "            module.p = 0.1\n",
        ("tests/test_models.py::test_dropout_that_a_model_brings_along_is_off", VARIANTS + "[gae-False]"),
    ),
    "the KL coefficient never adapts": Mutation(
        "stages/ppo.py",
        '            kl.update(figures["objective/kl"], config.responses_per_step)\n',
        "",
        (STAGE + "the_kl_coefficient_follows_the_kl",),
    ),
    "an optimizer with other averages": Mutation(
        "rlhf/engine/optimizer.py",
        "betas=(0.9, 0.95)",
        "betas=(0.9, 0.999)",
        ("tests/test_golden.py::test_figures_are_the_baselines[rloo]",),
    ),
    "a learning rate that does not fall": Mutation(
        "stages/cast.py",
        "learning_rate_end=config.learning_rate_end",
        "learning_rate_end=1.0",
        ("tests/test_golden.py::test_figures_are_the_baselines[reinforce++]",),
    ),
    "running scores forgotten by a checkpoint": Mutation(
        "stages/state.py",
        '            state["running"] = self.cast.running.state_dict()\n',
        '            state["running"] = {"count": 0.0, "mean": 0.0, "squares": 0.0}\n',
        (STAGE + "stopped_and_resumed_is_bit_for_bit[rloo]",),
    ),
    "a gradient that nobody looks at": Mutation(
        "rlhf/ppo/update.py",
        '_losses(shares), {f"{role}/grad_norm": norm}',
        "_losses(shares), {}",
        (SAFETY + "neither_model_learns_from_its_own_faulty_minibatch[inf in the value's gradient]",),
    ),
    "a loss that nobody looks at": Mutation(
        "rlhf/ppo/safety.py",
        "own = [name for name, is_finite in zip(losses, finite, strict=True) if not is_finite]",
        "own: list[str] = []",
        (SAFETY + "an_infinite_loss_is_a_fault_though_its_gradient_is_finite",),
    ),
    "a schedule that stands still over faults": Mutation(
        "rlhf/ppo/update.py",
        "engine.skip(planned - tally.updates[role])",
        "engine.skip(0)",
        (SAFETY + "a_faulty_rollout_is_not_learned_from_and_the_schedule_goes_on",),
    ),
    "a faulty step's scores remembered": Mutation(
        "stages/ppo.py",
        "if not fault and running and seen:",
        "if running and seen:",
        (FAULTS + "a_faulty_step_changes_nothing_but_the_schedule_and_the_count",),
    ),
    "a checkpoint among faults": Mutation(
        "stages/checkpoints.py",
        "        if self.faults_in_a_row:\n            return better\n",
        "",
        (FAULTS + "among_faults_only_the_end_or_a_better_policy_is_written_and_sigusr1_waits",),
    ),
}
