"""The stages: which roles take part, and what each holds in each phase of a step."""

from __future__ import annotations

from collections.abc import Collection

from rlhf.memory.beside import beside
from rlhf.memory.computation import FLOAT32, Computation
from rlhf.memory.forwards import POLICY_PER_LOGIT, RolloutLoad, backward, forward, logits, sampling
from rlhf.memory.models import answering, gradients, learner, stay, stepping
from rlhf.memory.parts import Estimate, Parts, Roles, added
from rlhf.shapes import Shape


def sft(shape: Shape, how: Computation, rows: int, length: int) -> Estimate:
    """Supervised fine-tuning with micro-batches of `rows` sequences of `length` tokens."""
    return trained("policy", shape, how, backward(shape, how, rows, length, rows * length))


def reward(shape: Shape, how: Computation, pairs: int, length: int) -> Estimate:
    """Reward training with micro-batches of so many pairs: two sequences each, one score a sequence."""
    return trained("reward model", shape, how, backward(shape, how, 2 * pairs, length))


def trained(role: str, shape: Shape, how: Computation, widest: Parts) -> Estimate:
    """A stage that trains one model, by TRL's trainers."""
    learned = {} if stay(how, bucketed=True) else {role: {"gradients": gradients(shape, how)}}
    return Estimate(
        {role: learner(shape, how, bucketed=True)},
        {
            "forward and backward": added(learned, {role: widest}),
            "optimizer": added(learned, {role: {"optimizer": stepping(shape, how)}}),
        },
    )


def ppo(
    policy: Shape,
    scorer: Shape | None,
    how: Computation,
    load: RolloutLoad,
    critic: bool = True,
    offload: Collection[str] = (),
) -> Estimate:
    """The models of PPO: policy and value model learn, reference and reward model answer.

    scorer: the reward model; None: a rule or a server. critic: whether a value model of its own takes part. It starts
    from the reward model, or from the policy where that reads other tokens: the larger of the two is counted. With
    adapters the reference is the policy without them. offload: as `ppo.offload`, what is only there while it is used.
    """
    values = scorer if scorer and scorer.weights > policy.weights else policy
    learning = {"policy": policy} | ({"value model": values} if critic else {})
    standing = {role: dict(learner(shape, how)) for role, shape in learning.items()}
    if load.sampler == "beside":
        standing["policy"] |= beside(policy, how, load)
    if how.lora_rank is None:
        standing["reference"] = dict(answering(policy, how))
    if scorer:
        standing["reward model"] = dict(answering(scorer, how))
    # Of one model at a time: the value model's update is over before the policy's begins.
    learned: dict[str, Roles] = {role: {} for role in learning}
    if not stay(how, bucketed=False):
        learned = {role: {role: {"gradients": gradients(shape, how)}} for role, shape in learning.items()}
    rows, length = load.rows, load.length
    updated = backward(policy, how, rows, length, rows * load.response, POLICY_PER_LOGIT)
    passing: dict[str, Roles] = {
        "sampling": {"policy": sampling(policy, how, load)},
        "log-probs": log_probs(policy, how, load),
        "update": added(learned["policy"], {"policy": updated}),
        "optimizer": added(learned["policy"], {"policy": {"optimizer": stepping(policy, how)}}),
    }
    if critic:
        own = learned["value model"]
        passing["value update"] = added(own, {"value model": backward(values, how, rows, length)})
        passing["value optimizer"] = added(own, {"value model": {"optimizer": stepping(values, how)}})
    if "reference" in offload and "reference" in standing:
        passing["log-probs"] = added(passing["log-probs"], {"reference": standing.pop("reference")})
    if "reward" in offload and scorer:
        scored = {"reward model": forward(scorer, how, rows * length, learner=False)}
        passing["scores"] = added(scored, {"reward model": standing.pop("reward model")})
    if "optimizer" in offload:  # and while a checkpoint is written, beside nothing else
        moments: Roles = {role: {"optimizer": standing[role].pop("optimizer")} for role in learning}
        for phase in passing.keys() & {"update", "optimizer", "value update", "value optimizer"}:
            passing[phase] = added(passing[phase], moments)
    return Estimate(standing, passing)


def log_probs(policy: Shape, how: Computation, load: RolloutLoad) -> Roles:
    """What is asked of a rollout without a gradient: of the reference, and of the policy where it samples otherwise."""
    own = how.bfloat16 or load.sampler in ("server", "beside") or how.lora_rank is not None
    found = forward(policy, how, load.rows * load.length, learner=own)
    answers = logits(policy, how, load.rows * load.response, POLICY_PER_LOGIT)
    return {"policy" if own else "reference": {**found, "logits": answers}}


def evaluation(shape: Shape, how: Computation, load: RolloutLoad) -> Estimate:
    """Policy, reference and reward model, whole on each process, of which none learns."""
    frozen = {"weights": float(shape.weights * (how.element if how.bfloat16 else FLOAT32))}
    standing = {role: frozen for role in ("policy", "reference", "reward model")}
    return Estimate(standing, {"sampling": {"policy": sampling(shape, how, load)}})
