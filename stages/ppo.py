"""Proximal policy optimisation with a KL penalty: the policy learns to score high without leaving the SFT model.

One step: collect (no gradients), shape rewards, estimate advantages, update, adapt the KL coefficient, log.
"""

from __future__ import annotations

from rlhf.advantages import gae, whiten
from rlhf.distributed import rank, world_size
from rlhf.kl import estimate
from rlhf.ppo.experience import collect
from rlhf.ppo.shaping import penalize_unfinished, shape_rewards
from rlhf.ppo.update import Targets, update
from rlhf.tracking.timer import PhaseTimer
from stages.cast import PromptOrder, prepare
from stages.command import run_stage
from stages.context import StageContext
from stages.rollout import evaluate_held_out, rollout_statistics
from stages.state import PpoState


def main(context: StageContext) -> None:
    """Train the policy against the reward model; hand on the policy."""
    recipe, config = context.recipe, context.recipe.ppo
    cast = prepare(context)
    actors, policy, value, kl, prompts = cast
    state, checkpoints = PpoState(cast), context.checkpoints()
    start = checkpoints.restore(state.load)
    order = PromptOrder(prompts.train, recipe.seed)
    rows = range(rank(), config.prompts_per_step, world_size())
    timer = PhaseTimer()
    with context.progress(config.steps, start) as progress, checkpoints.training():
        for step in range(start + 1, config.steps + 1):
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
            held_out = None
            if config.evaluate_every and (step % config.evaluate_every == 0 or step == config.steps):
                held_out = evaluate_held_out(context, actors, prompts.test, step)
            checkpoints.after(step, state.save, held_out, last=step == config.steps)
    results = {
        "kl": state.figures["objective/kl"],
        "scores": state.figures["objective/scores"],
        "episodes": config.steps * config.prompts_per_step,
        "steps": config.steps,
    }
    engine = {"policy": policy.name, "value": value.name}
    context.finish(results, policy.module, actors.tokenization, engine=engine)


if __name__ == "__main__":
    run_stage("ppo", main)
