"""The best policy of a PPO run by held-out score, found again when training has ended, to be kept and handed on.

That of the last step is the policy in training; that of step 0 is the SFT model, which stands in the stage's input; any
other comes from its checkpoint, which `checkpoint.keep_best` has kept.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from rlhf.engine.ddp import load_weights
from rlhf.models import add_lora, load_policy
from rlhf.randomness import seed_everything
from rlhf.store.checkpoint import Damaged
from rlhf.tokenization import Tokenization
from rlhf.trunk import PolicyWithValueHead
from stages.context import StageContext
from stages.held_out import Evaluation, HeldOut


class Best(NamedTuple):
    """A policy, on the main rank, and what was measured of it."""

    policy: nn.Module
    evaluation: Evaluation


def find_best(context: StageContext, held_out: HeldOut, last: nn.Module, tokenization: Tokenization) -> Best | None:
    """The policy with the best held-out score; None where the recipe evaluates or keeps none.

    last: the policy in training, whose step was the last to be evaluated. Where a checkpoint was lost, to a full disk
    or a damaged one, that is said, and the best of the others is taken.
    """
    if not context.recipe.checkpoint.keep_best:
        return None
    for evaluation in held_out.ranked:
        if evaluation.step == held_out.evaluations[-1].step:
            return Best(last, evaluation)
        try:
            return Best(_policy_after(context, evaluation.step, tokenization), evaluation)
        except Damaged as problem:
            context.warn(f"{problem}; the best policy, that of step {evaluation.step}, is lost, the next best is kept")
    return None


def _policy_after(context: StageContext, step: int, tokenization: Tokenization) -> nn.Module:
    """A policy as the stage prepares it, with the weights that it had after a step. Raises Damaged."""
    recipe = context.recipe
    checkpoint = context.store.verified(context.store.final(step)) if step else None
    policy = load_policy(context.inputs["sft"].model, tokenization, recipe.model, quantized=True)
    if recipe.model.lora:
        seed_everything(recipe.seed)  # fresh adapters are drawn, also where they add nothing yet
        policy = add_lora(policy, recipe.model.lora, "policy")
    if checkpoint:
        trunk = recipe.ppo.has_value and not recipe.ppo.has_critic  # what learned was the policy with its value head
        load_weights(PolicyWithValueHead(policy) if trunk else policy, checkpoint.directory / "policy")
    return policy
