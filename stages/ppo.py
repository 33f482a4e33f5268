"""Proximal policy optimisation with a KL penalty: the policy learns to score high without leaving the SFT model.

One step: collect (no gradients), shape rewards, estimate advantages, update, adapt the KL coefficient, log.
"""

from __future__ import annotations

from rlhf.advantages import gae, whiten
from rlhf.distributed import is_main, rank, world_size
from rlhf.kl import estimate
from rlhf.ppo.experience import collect
from rlhf.ppo.shaping import penalize_unfinished, shape_rewards
from rlhf.ppo.update import Targets, update
from rlhf.tracking.timer import PhaseTimer
from stages.best import find_best
from stages.cast import PromptOrder, prepare
from stages.command import run_stage
from stages.context import StageContext
from stages.held_out import HeldOut
from stages.rollout import rollout_statistics
from stages.state import PpoState


def main(context: StageContext) -> None:
    """Train the policy against the reward model; hand on the policy."""
    recipe, config = context.recipe, context.recipe.ppo
    cast = prepare(context)
    actors, policy, value, kl, prompts = cast
    held_out, checkpoints = HeldOut(context, cast), context.checkpoints()
    state = PpoState(cast, held_out)
    step = start = checkpoints.restore(state.load)
    order = PromptOrder(prompts.train, recipe.seed)
    rows = range(rank(), config.prompts_per_step, world_size())
    timer = PhaseTimer()
    checkpoints.surpass(held_out.evaluate_start())
    with context.progress(config.steps, start) as progress, checkpoints.training():
        for step in held_out.steps(start):
            with timer.phase("collect"):
                batch = [order[(step - 1) * config.prompts_per_step + row] for row in rows]
                experience, _ = collect(batch, rows, actors, config, (recipe.seed, step))
            with timer.phase("update"):
                divergence = estimate(experience.old_logprobs, experience.ref_logprobs, config.kl.estimator)
                scores = penalize_unfinished(experience.scores, experience.finished, config.missing_eos_penalty)
                rewards = shape_rewards(scores, divergence, experience.mask, kl.coef)
                advantages, returns = gae(rewards, experience.values, experience.mask, config.gamma, config.lam)
                targets = Targets(whiten(advantages, experience.mask), returns)
                statistics = update(policy, value, experience, targets, config, (recipe.seed, step))
            figures = rollout_statistics(experience, rewards, returns, divergence) | statistics
            figures["objective/kl_coef"] = kl.coef
            kl.update(figures["objective/kl"], config.prompts_per_step)
            actors.generator.load(policy.module)
            state.figures = figures | timer.speed(figures["tokens/response_length"] * config.prompts_per_step)
            context.tracker.log(step, state.figures)
            progress.update(step, {name: figures[f"objective/{name}"] for name in ("scores", "kl", "entropy")})
            score = held_out.evaluate(step)
            checkpoints.after(step, state.save, score, last=held_out.ended(step))
    results = {
        "kl": state.figures["objective/kl"],
        "scores": state.figures["objective/scores"],
        "episodes": step * config.prompts_per_step,
        "steps": step,
    }
    engine = {"policy": policy.name, "value": value.name}
    best = find_best(context, held_out, policy.module, actors.tokenization) if is_main() else None
    handed_on = best.policy if best and config.hand_on == "best" else policy.module
    results |= held_out.results(step, best.evaluation if best else None)
    context.finish(results, handed_on, actors.tokenization, best.policy if best else None, engine=engine)


if __name__ == "__main__":
    run_stage("ppo", main)
