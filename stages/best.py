"""The policies of a PPO run to be kept and handed on: the last, whole, and the best by held-out score, found again.

That of the last step is the policy in training; that of step 0 is the SFT model, which stands in the stage's input; any
other comes from its checkpoint, which `checkpoint.keep_best` has kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from rlhf.beacons import patient
from rlhf.distributed import from_main
from rlhf.engine.learning import load_weights
from rlhf.models import add_lora, load_policy
from rlhf.randomness import seed_everything
from rlhf.sharding import is_sharded, whole
from rlhf.store.checkpoint import Damaged
from rlhf.tokenization import Tokenization
from rlhf.trunk import PolicyWithValueHead
from stages.context import StageContext
from stages.held_out import Evaluation, HeldOut

PATIENCE_SECONDS = 24 * 3600.0  # a large model is read, and all of its checkpoint compared with its checksums


class Best(NamedTuple):
    """A policy, on the main rank, and what was measured of it."""

    policy: nn.Module
    evaluation: Evaluation


def whole_policy(context: StageContext, last: nn.Module, tokenization: Tokenization) -> nn.Module:
    """The policy in training, with all of its weights on the main rank. A collective where it is shared out.

    Then the main rank's is another model, on the CPU, into which the weights are gathered one by one; those of the
    others are of no use.
    """
    if not is_sharded(last):
        return last
    made: list[nn.Module] = []  # on the main rank alone
    from_main(lambda: made.append(plain_policy(context, tokenization)))
    copies = dict(made[0].named_parameters()) if made else {}
    with torch.no_grad():
        for name, parameter in last.named_parameters():
            if parameter.requires_grad:
                gathered = whole(parameter).detach()
                if made:
                    copies[name].copy_(gathered)
    return made[0] if made else last


def find_best(context: StageContext, held_out: HeldOut, last: nn.Module, tokenization: Tokenization) -> Best | None:
    """The policy with the best held-out score; None where the recipe evaluates or keeps none.

    last: the policy in training, whose step was the last to be evaluated. Where a checkpoint was lost, to a full disk
    or a damaged one, that is said, and the best of the others is taken.
    """
    if not context.recipe.checkpoint.keep_best:
        return None
    with patient("looks for the best policy", PATIENCE_SECONDS):  # alone: the others wait to hand it on
        for evaluation in held_out.ranked:
            if evaluation.step == held_out.evaluations[-1].step:
                return Best(last, evaluation)
            try:
                return Best(_policy_after(context, evaluation.step, tokenization), evaluation)
            except Damaged as problem:
                lost = f"the best policy, that of step {evaluation.step}, is lost, the next best is kept"
                context.warn(f"{problem}; {lost}")
    return None


def plain_policy(context: StageContext, tokenization: Tokenization) -> nn.Module:
    """A policy as the stage prepares it before the first step."""
    recipe = context.recipe
    policy = load_policy(context.inputs["sft"].model, tokenization, recipe.model, quantized=True)
    if recipe.model.lora:
        seed_everything(recipe.seed)  # fresh adapters are drawn, also where they add nothing yet
        policy = add_lora(policy, recipe.model.lora, "policy")
    return policy


def _policy_after(context: StageContext, step: int, tokenization: Tokenization) -> nn.Module:
    """A policy as the stage prepares it, with the weights that it had after a step. Raises Damaged."""
    recipe = context.recipe
    checkpoint = context.store.verified(context.store.final(step)) if step else None
    policy = plain_policy(context, tokenization)
    if checkpoint:
        trunk = recipe.ppo.has_value and not recipe.ppo.has_critic  # what learned was the policy with its value head
        learned, place = PolicyWithValueHead(policy) if trunk else policy, checkpoint.directory / "policy"
        if checkpoint.meta["strategy"].startswith("zero"):
            from rlhf.engine.zero import load_zero_weights  # loads DeepSpeed

            load_zero_weights(learned, place)
        else:
            load_weights(learned, place)
    return policy
