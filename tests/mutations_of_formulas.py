"""Mistakes in the formulas: KL, losses, advantages, and what is made of a rollout."""

from __future__ import annotations

from mutation import ADVANTAGES, DEFINED, LOSSES, TWO, UPDATE, VARIANTS, Mutation

OF_FORMULAS: dict[str, Mutation] = {
    "the KL's sign in the reward": Mutation(
        "rlhf/ppo/shaping.py",
        "rewards = (-coef * kl)",
        "rewards = (coef * kl)",
        (UPDATE + "the_score_stands_at_the_last_token_and_divergence_costs", DEFINED.format("gae")),
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
    "the loss averaged by micro-batch": Mutation(
        "rlhf/losses.py",
        "loss = torch.maximum(unclipped, clipped).sum() / n_tokens",
        "loss = torch.maximum(unclipped, clipped).sum() / mask.sum().clamp(min=1)",
        (UPDATE + "an_update_does_not_depend_on_the_cut", LOSSES + "micro_batches_add_up_in_any_order"),
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
        ".sum(-1).view(-1, group)",
        ".sum(-1).view(group, -1).T",
        (ADVANTAGES + "responses_are_compared_within_their_group[grpo-99.0]", DEFINED.format("grpo")),
    ),
    "GRPO without the deviation": Mutation(
        "rlhf/advantages.py",
        "_spread((centred / (totals.std(-1, keepdim=True) + 1e-6)).to(rewards.dtype), mask)",
        "_spread(centred.to(rewards.dtype), mask)",
        (ADVANTAGES + "grpo_does_not_see_a_shift_or_a_scale_of_a_groups_rewards",),
    ),
    "an advantage of rounding": Mutation(
        "rlhf/advantages.py",
        ".double().sum(-1).view",
        ".sum(-1).view",
        (ADVANTAGES + "scores_that_float32_rounds_teach_nothing_either[grpo-10]",),
    ),
    "padding masked behind the KL's estimate": Mutation(
        "rlhf/losses.py",
        "return estimate(new, reference, kind).sum() / n_tokens",
        "return estimate(logprobs, ref_logprobs, kind).masked_fill(~mask, 0.0).sum() / n_tokens",
        (LOSSES + "padding_that_is_all_but_impossible_has_no_gradient[k3]",),
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
    "values clipped around the new ones": Mutation(
        "rlhf/losses.py",
        "clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()",
        "clipped = (values + (old_values - values).clamp(-clip, clip) - returns).square()",
        (LOSSES + "value_loss_is_the_definition[0.2-99.0]", VARIANTS + "[gae-False]"),
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
}
