"""Proximal policy optimisation with a KL penalty: the policy learns to score high without leaving the SFT model.

One step: collect (no gradients), shape rewards, estimate advantages, update, adapt the KL coefficient, log. From a step
in which something is not finite nothing is learned.
"""

from __future__ import annotations

from copy import copy
from math import nan

from rlhf.distributed import is_main
from rlhf.ppo.experience import collect, own_rows
from rlhf.ppo.targets import find_targets
from rlhf.ppo.update import update
from rlhf.tracking.timer import PhaseTimer
from stages.best import find_best, whole_policy
from stages.cast import PromptOrder, prepare
from stages.command import run_stage
from stages.context import StageContext
from stages.faults import Faults
from stages.held_out import HeldOut
from stages.rollout import rollout_statistics
from stages.state import PpoState


def main(context: StageContext) -> None:
    """Train the policy against the reward model; hand on the policy."""
    recipe, config = context.recipe, context.recipe.ppo
    cast = prepare(context)
    actors, policy, value, kl, running, prompts, _ = cast
    held_out, checkpoints = HeldOut(context, cast), context.checkpoints()
    faults = Faults(context, checkpoints)
    state = PpoState(cast, held_out, faults.breaker)
    step = start = checkpoints.restore(state.load)
    order = PromptOrder(prompts.train, recipe.seed)
    rows = own_rows(config)
    timer = PhaseTimer()
    checkpoints.surpass(held_out.evaluate_start())
    with context.progress(config.steps, start) as progress, checkpoints.training():
        for step in held_out.steps(start):
            key = (recipe.seed, step)
            with timer.phase("collect"):
                experience, completions = collect(order.asked(step, rows, config), rows, actors, config, key)
            with timer.phase("update"):
                seen = copy(running)
                targets = find_targets(experience, config, kl.coef, seen)
                warm = not config.has_value or step > config.value_warmup_steps
                statistics, fault = update(policy, value, experience, targets, config, key, learn_policy=warm)
            figures = rollout_statistics(experience, targets) | statistics | {"objective/kl_coef": kl.coef}
            figures |= faults.count(step, fault, experience, completions)
            if not fault and running and seen:
                running.load_state_dict(seen.state_dict())
            if not fault and warm:  # before, there is no KL to control
                kl.update(figures["objective/kl"], config.responses_per_step)
            actors.generator.load(actors.policy)
            figures |= timer.speed(figures["tokens/response_length"] * config.responses_per_step)
            context.tracker.log(step, figures)
            state.note(figures)
            progress.update(step, {name: figures.get(f"objective/{name}", nan) for name in ("scores", "kl", "entropy")})
            faults.stop_after_too_many(step)
            score = held_out.evaluate(step)
            checkpoints.after(step, state, score, last=held_out.ended(step))
    faults.require_sound(step, policy, cast.probe)
    results = {
        "kl": state.figures.get("objective/kl"),
        "scores": state.figures.get("objective/scores"),
        "episodes": step * config.responses_per_step,
        "steps": step,
    }
    engine = {"policy": policy.name} | ({"value": value.name} if value else {})
    last = whole_policy(context, actors.policy, actors.tokenization)
    best = find_best(context, held_out, last, actors.tokenization) if is_main() else None
    handed_on = best.policy if best and config.hand_on == "best" else last
    results |= held_out.results(step, best.evaluation if best else None)
    context.finish(results, handed_on, actors.tokenization, best.policy if best else None, engine=engine)


if __name__ == "__main__":
    run_stage("ppo", main)
