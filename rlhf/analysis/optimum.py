"""Where a KL penalty leads, known in full: policies over responses that can be counted, in float64.

PPO with a KL penalty maximises J(pi) = E[r(x, y)] - beta KL(pi || pi_ref). Its maximum is
pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x), with J* = beta log Z(x) (Ziegler et al. 2019, eq. 3; Korbat et al.
2022). Policies and rewards are arrays [prompts, responses] over the same responses; prompts are equally likely.
docs/theory.md derives what stands here. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Response: TypeAlias = tuple[int, ...]
# What a state's choice settles at: from the worth [tokens] of each token and the reference's probabilities [tokens],
# the policy's [tokens] and the worth of the state.
Rule: TypeAlias = Callable[[Array, Array], tuple[Array, float]]


def optimum(reference: Array, rewards: Array, beta: float) -> Array:
    """pi* [prompts, responses]; beta > 0 in reward per nat."""
    weights = reference * np.exp((rewards - rewards.max(-1, keepdims=True)) / beta)
    best: Array = weights / weights.sum(-1, keepdims=True)
    return best


def best_objective(reference: Array, rewards: Array, beta: float) -> Array:
    """J* = beta log Z [prompts]."""
    highest = rewards.max(-1)
    best: Array = highest + beta * np.log((reference * np.exp((rewards - highest[:, None]) / beta)).sum(-1))
    return best


def divergence(policy: Array, reference: Array) -> Array:
    """KL(policy || reference) [prompts] in nats; a response of no probability adds nothing."""
    safe = np.where(policy > 0, policy, 1.0)
    kl: Array = (policy * (np.log(safe) - np.where(policy > 0, np.log(reference), 0.0))).sum(-1)
    return kl


def objective(policy: Array, reference: Array, rewards: Array, beta: float) -> Array:
    """J = E[r] - beta KL [prompts]."""
    expected: Array = (policy * rewards).sum(-1) - beta * divergence(policy, reference)
    return expected


def total_variation(first: Array, second: Array) -> Array:
    """Half the sum of absolute differences [prompts]: the most that an event's probability can differ by."""
    distance: Array = np.abs(first - second).sum(-1) / 2
    return distance


def objective_gap(policy: Array, reference: Array, rewards: Array, beta: float) -> float:
    """(J* - J) / (J* - J(reference)), means over prompts: the share of the possible gain that is missing."""
    best = best_objective(reference, rewards, beta).mean()
    missing = best - objective(policy, reference, rewards, beta).mean()
    return float(missing / (best - objective(reference, reference, rewards, beta).mean()))


def exact_rule(beta: float) -> Rule:
    """The optimum, state by state: what follows a token is worth its rewards less its KL."""

    def rule(worth: Array, reference: Array) -> tuple[Array, float]:
        policy = optimum(reference[None], worth[None], beta)[0]
        return policy, float(best_objective(reference[None], worth[None], beta)[0])

    return rule


def k2_rule(beta: float) -> Rule:
    """k2 in the loss: each state's own KL counts, but what follows a token is worth its rewards alone."""

    def rule(worth: Array, reference: Array) -> tuple[Array, float]:
        policy = optimum(reference[None], worth[None], beta)[0]
        return policy, float(policy @ worth)

    return rule


def k3_rule(beta: float) -> Rule:
    """k3 in the loss: as k2, with each state's KL(reference || policy), so pi = beta ref / (level - worth).

    The level, above every worth, is where the probabilities sum to one; found by bisection.
    """

    def rule(worth: Array, reference: Array) -> tuple[Array, float]:
        low = float((worth + beta * reference).max())  # there one token alone has all the probability
        high = float(worth.max() + beta)  # there none has more than its reference's
        for _ in range(200):
            level = (low + high) / 2
            low, high = (level, high) if (beta * reference / (level - worth)).sum() > 1 else (low, level)
        policy = beta * reference / (high - worth)
        policy /= policy.sum()
        return policy, float(policy @ worth)

    return rule


def settled(reference: Array, rewards: Array, responses: Sequence[Response], rule: Callable[[int], Rule]) -> Array:
    """The policy [prompts, responses] whose every choice of a token obeys a rule, from the last token to the first.

    responses: token by token, in the arrays' order, none the beginning of another. rule: that of each prompt.
    """
    found = [_settled(*row, responses, rule(i)) for i, row in enumerate(zip(reference, rewards, strict=True))]
    return np.array(found)


def _settled(reference: Array, rewards: Array, responses: Sequence[Response], rule: Rule) -> Array:
    """One prompt's policy [responses]."""
    places = {response: i for i, response in enumerate(responses)}
    mass: dict[Response, float] = {}  # the reference's probability of all responses that begin so
    following: dict[Response, list[Response]] = {}
    for response, probability in zip(responses, reference, strict=True):
        for length in range(len(response) + 1):
            begun = response[:length]
            if begun not in mass and length:
                following.setdefault(begun[:-1], []).append(begun)
            mass[begun] = mass.get(begun, 0.0) + float(probability)
    policy = np.zeros(len(responses))

    def worth_of(begun: Response) -> tuple[float, Array]:
        """What a state is worth, and the probabilities [responses] of what follows it."""
        if begun in places:
            return float(rewards[places[begun]]), np.eye(1, len(responses), places[begun])[0]
        found = [worth_of(longer) for longer in following[begun]]
        shares = np.array([mass[longer] / mass[begun] for longer in following[begun]])
        chosen, worth = rule(np.array([part for part, _ in found]), shares)
        return worth, sum((p * rest for p, (_, rest) in zip(chosen, found, strict=True)), np.zeros_like(policy))

    return worth_of(())[1]
