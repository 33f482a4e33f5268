"""Mistakes made on purpose, and the tests that must see each: what `tests/mutate.py` plays through.

A mutation replaces one piece of text, which must stand in its file exactly once; where the code has changed, so must
the mutation. Most are mistakes that PPO implementations have really had.
"""

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
STOPS = "tests/test_generation.py::test_a_stop_ends_a_row_and_its_work"
MASKED = "mask = torch.arange(width) < lengths[:, None]"

MUTATIONS: dict[str, Mutation] = {
    "the KL's sign in the reward": Mutation(
        "rlhf/ppo/shaping.py",
        "rewards = (-coef * kl)",
        "rewards = (coef * kl)",
        (UPDATE + "the_score_stands_at_the_last_token_and_divergence_costs", DEFINED.format("gae")),
    ),
    "the KL's sign in the loss": Mutation(
        "rlhf/ppo/objective.py",
        "loss = loss + targets.kl_coef * divergence",
        "loss = loss - targets.kl_coef * divergence",
        (VARIANTS + "[k2 in the loss-False]",),
    ),
    "k3's sign": Mutation(
        "rlhf/kl.py",
        "return log_ratio.expm1() - log_ratio",
        "return log_ratio.expm1() + log_ratio",
        (
            "tests/test_kl.py::test_each_token_is_the_definition[k3]",
            LOSSES + "kl_loss_is_the_mean_over_tokens[k3-99.0]",
        ),
    ),
    "the KL the other way round": Mutation(
        "rlhf/kl.py",
        "log_ratio = ref_logprobs - logprobs",
        "log_ratio = logprobs - ref_logprobs",
        ("tests/test_kl.py::test_each_token_is_the_definition[k1]",),
    ),
    "the KL controller pushes away": Mutation(
        "rlhf/kl.py",
        "error = min(max(kl / self.target - 1.0, -0.2), 0.2)",
        "error = min(max(1.0 - kl / self.target, -0.2), 0.2)",
        ("tests/test_kl.py::test_adaptive_controller_is_the_definition",),
    ),
    "whitening by each rank for itself": Mutation(
        "rlhf/advantages.py",
        "count, total = global_sum(torch.stack([mask.sum().double(), selected.sum()])).unbind()",
        "count, total = torch.stack([mask.sum().double(), selected.sum()]).unbind()",
        (TWO + "figures_of_each_token_are_equal[advantages-ragged]",),
    ),
    "running scores of each rank for itself": Mutation(
        "rlhf/ppo/shaping.py",
        "count, total = global_sum(sums.to(device())).tolist()",
        "count, total = sums.tolist()",
        (TWO + "figures_of_each_token_are_equal[advantages-reinforce++]",),
    ),
    "the loss by each rank's own tokens": Mutation(
        "rlhf/ppo/update.py",
        "n_tokens = float(global_sum(experience.mask[rows].sum().to(device)))",
        "n_tokens = max(1.0, float(experience.mask[rows].sum()))",
        (TWO + "statistics_are_equal_on_every_rank[ragged]",),
    ),
    "gradients averaged over ranks": Mutation(
        "rlhf/engine/ddp.py",
        "(loss * world_size()).backward()",
        "loss.backward()",
        (TWO + "statistics_are_equal_on_every_rank[ragged]",),
    ),
    "noise by the row on its rank": Mutation(
        "rlhf/ppo/experience.py",
        "actors.generator.sample(prompt_tokens, rows, seed",
        "actors.generator.sample(prompt_tokens, range(len(prompts)), seed",
        (TWO + "each_rank_has_its_rows_and_samples_the_same_tokens[ragged]",),
    ),
    "the loss averaged by micro-batch": Mutation(
        "rlhf/losses.py",
        "loss = torch.maximum(unclipped, clipped).sum() / n_tokens",
        "loss = torch.maximum(unclipped, clipped).sum() / mask.sum().clamp(min=1)",
        (UPDATE + "an_update_does_not_depend_on_the_cut", LOSSES + "micro_batches_add_up_in_any_order"),
    ),
    "the mask one token too long": Mutation(
        "rlhf/generation/native.py",
        MASKED,
        "mask = torch.arange(width) <= lengths[:, None]",
        (UPDATE + "completions_say_what_was_sampled", STOPS),
    ),
    "the mask one token too short": Mutation(
        "rlhf/generation/native.py",
        MASKED,
        "mask = torch.arange(width) < (lengths[:, None] - 1).clamp(min=1)",
        (UPDATE + "experience_is_what_each_row_gives_alone", STOPS),
    ),
    "the stop token left out of the mask": Mutation(
        "rlhf/generation/native.py",
        MASKED + "\n        responses, logprobs = responses[:, :width], logprobs[:, :width]\n"
        "        finished = ((responses == self.stop_id) & mask).any(-1)\n",
        "ended = responses[torch.arange(len(lengths)), lengths - 1] == self.stop_id\n"
        "        mask = torch.arange(width) < (lengths - ended.long()).clamp(min=1)[:, None]\n"
        "        responses, logprobs, finished = responses[:, :width], logprobs[:, :width], ended\n",
        (UPDATE + "completions_say_what_was_sampled", "tests/test_ppo_variants.py::test_the_stop_token_counts"),
    ),
    "old log-probs of the reference": Mutation(
        "rlhf/ppo/experience.py",
        "        old_logprobs=old_logprobs,\n",
        "        old_logprobs=ref_logprobs,\n",
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
        "logits = output.logits[:, :-1].float() / temperature",
        "logits = output.logits[:, :-1].float()",
        (UPDATE + "experience_is_what_each_row_gives_alone", UPDATE + "the_first_update_is_on_policy"),
    ),
    "log-probs of the next token": Mutation(
        "rlhf/logprobs.py",
        "logits = output.logits[:, :-1].float() / temperature",
        "logits = output.logits[:, 1:].float() / temperature",
        ("tests/test_logprobs.py::test_response_logprobs_come_from_the_position_before",),
    ),
    "the value at the token itself": Mutation(
        "rlhf/logprobs.py",
        "return values[:, -response_length - 1 : -1].float()",
        "return values[:, -response_length:].float()",
        (
            "tests/test_logprobs.py::test_response_values_come_from_the_position_before",
            UPDATE + "experience_is_what_each_row_gives_alone",
        ),
    ),
    "the trunk's value at the token itself": Mutation(
        "rlhf/logprobs.py",
        "None if values is None else values[:, :-1].float()",
        "None if values is None else values[:, 1:].float()",
        (VARIANTS + "[gae on the trunk-False]",),
    ),
    "GAE over what values stand in the padding": Mutation(
        "rlhf/advantages.py",
        "    values = values.masked_fill(~mask, 0.0)\n    advantages = torch.zeros_like(rewards)",
        "    advantages = torch.zeros_like(rewards)",
        (ADVANTAGES + "gae_is_the_double_sum[99.0]", DEFINED.format("gae")),
    ),
    "GAE over what rewards stand in the padding": Mutation(
        "rlhf/advantages.py",
        "    rewards = rewards.masked_fill(~mask, 0.0)\n    values",
        "    values",
        (ADVANTAGES + "gae_is_the_double_sum[99.0]",),
    ),
    "the policy's lambda for returns": Mutation(
        "rlhf/ppo/targets.py",
        "returns = gae(rewards, values, mask, config.gamma, config.value_lam)[1]",
        "returns = gae(rewards, values, mask, config.gamma, config.lam)[1]",
        (DEFINED.format("gae"),),
    ),
    "leave-one-out that leaves nobody out": Mutation(
        "rlhf/advantages.py",
        "others = (totals.sum(-1, keepdim=True) - totals) / (group - 1)",
        "others = totals.mean(-1, keepdim=True)",
        (ADVANTAGES + "responses_are_compared_within_their_group[rloo-99.0]", DEFINED.format("rloo")),
    ),
    "responses compared across prompts": Mutation(
        "rlhf/advantages.py",
        ".view(-1, group)\n    centred",
        ".view(group, -1).T\n    centred",
        (ADVANTAGES + "responses_are_compared_within_their_group[grpo-99.0]", DEFINED.format("grpo")),
    ),
    "prompts' responses sampled out of order": Mutation(
        "rlhf/ppo/experience.py",
        "        prompt * group + response\n",
        "        response * config.prompts_per_step + prompt\n",
        ("tests/test_ppo_toolbox.py::test_responses_to_a_prompt_stay_together[2]",),
    ),
    "GRPO without the deviation": Mutation(
        "rlhf/advantages.py",
        "_spread(centred / (totals.std(-1, keepdim=True) + 1e-6), mask)",
        "_spread(centred, mask)",
        (ADVANTAGES + "grpo_does_not_see_a_shift_or_a_scale_of_a_groups_rewards",),
    ),
    "whitened rewards that lose their mean": Mutation(
        "rlhf/ppo/targets.py",
        "rewards = whiten(rewards, mask, shift=False)",
        "rewards = whiten(rewards, mask)",
        (DEFINED.format("gae whitened"),),
    ),
    "the clip's bounds swapped": Mutation(
        "rlhf/losses.py",
        "factor.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))",
        "factor.clamp(1 - (clip if clip_high is None else clip_high), 1 + clip)",
        (LOSSES + "policy_loss_is_the_definition[asymmetric-99.0]", VARIANTS + "[asymmetric clip-False]"),
    ),
    "the better of clipped and free": Mutation(
        "rlhf/losses.py",
        "loss = torch.maximum(unclipped, clipped).sum()",
        "loss = torch.minimum(unclipped, clipped).sum()",
        (LOSSES + "clipping_stops_only_the_gain", LOSSES + "policy_loss_is_the_definition[plain-99.0]"),
    ),
    "the sequence ratio as a product": Mutation(
        "rlhf/losses.py",
        "mean = log_ratio.detach().sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)",
        "mean = log_ratio.detach().sum(-1, keepdim=True)",
        (LOSSES + "policy_loss_is_the_definition[sequence-99.0]", VARIANTS + "[sequence ratio-False]"),
    ),
    "importance weights inverted": Mutation(
        "rlhf/ppo/targets.py",
        "(experience.old_logprobs - experience.sampler_logprobs).exp()",
        "(experience.sampler_logprobs - experience.old_logprobs).exp()",
        (DEFINED.format("rloo"), VARIANTS + "[weights-False]"),
    ),
    "importance weights left out": Mutation(
        "rlhf/losses.py",
        "advantages = advantages * weights.masked_fill(~mask, 0.0)",
        "advantages = advantages * 1.0",
        (LOSSES + "policy_loss_is_the_definition[weighted-99.0]", VARIANTS + "[weights-False]"),
    ),
    "what top-p kept left out": Mutation(
        "rlhf/generation/native.py",
        "Sampled(responses, logprobs, logprobs - kept[:, :width], mask, finished)",
        "Sampled(responses, logprobs, logprobs, mask, finished)",
        (ALONE + "[weights-full]",),
    ),
    "values clipped around the new ones": Mutation(
        "rlhf/losses.py",
        "clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()",
        "clipped = (values + (old_values - values).clamp(-clip, clip) - returns).square()",
        (LOSSES + "value_loss_is_the_definition[0.2-99.0]", VARIANTS + "[gae-False]"),
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
    "the score a token too early": Mutation(
        "rlhf/ppo/shaping.py",
        "last = mask.sum(-1) - 1",
        "last = (mask.sum(-1) - 2).clamp(min=0)",
        (UPDATE + "the_score_stands_at_the_last_token_and_divergence_costs", DEFINED.format("gae")),
    ),
    "who finished pays": Mutation(
        "rlhf/ppo/shaping.py",
        "scores - penalty * (~finished).to(scores.dtype)",
        "scores - penalty * finished.to(scores.dtype)",
        (UPDATE + "only_unfinished_responses_pay", DEFINED.format("reinforce++")),
    ),
    "the reference trained along": Mutation(
        "stages/cast.py",
        "else freeze(load_policy(*sources), recipe)",
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
        "rlhf/engine/ddp.py",
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
        '                state["running"] = self.cast.running.state_dict()\n',
        '                state["running"] = {"count": 0.0, "mean": 0.0, "squares": 0.0}\n',
        (STAGE + "stopped_and_resumed_is_bit_for_bit[rloo]",),
    ),
}
