"""KL divergence between the policy and the reference: per-token estimators and coefficient controllers."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: Estimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    logprobs, ref_logprobs [batch, response] nats; the result has the same shape. With r = p_ref / p
    (Schulman 2020, "Approximating KL divergence"):
    k1 = -log r, unbiased; k2 = (log r)^2 / 2, biased, lower variance; k3 = r - 1 - log r, unbiased, never negative.

    That is their value. Their gradient as a loss, in expectation over the policy's own samples, is at each state by
    itself: of k1 zero, of k2 that of KL(policy || reference), of k3 that of KL(reference || policy), which agrees near
    the reference alone. None of them sees what a token does to the KL of later states, as k1 in the reward does (Tang &
    Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL").
    """
    log_ratio = ref_logprobs - logprobs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        return log_ratio.expm1() - log_ratio
    raise ValueError(f"kind={kind!r} is no KL estimator; use k1, k2 or k3")


class Controller(Protocol):
    """Sets the coefficient of the KL penalty, in reward per nat."""

    coef: float

    def update(self, kl: float, episodes: int) -> None:
        """Take in a step's mean KL per response (nats) and its number of responses."""
        ...

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must hold."""
        ...

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up a checkpoint's state."""
        ...


class FixedController:
    """A coefficient that stays."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, episodes: int) -> None:
        """Change nothing."""

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up the coefficient."""
        self.coef = state["coef"]


class AdaptiveController:
    """Proportional control in log space towards a target KL (Ziegler et al. 2019, section 2.2).

    error = clip(kl / target - 1, -0.2, 0.2); coef *= 1 + error * min(episodes / horizon, 1).
    """

    def __init__(self, coef: float, target: float, horizon: int) -> None:
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """Raise the coefficient when the KL is over the target, lower it when under."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        # More episodes than the horizon count as one horizon: else the coefficient could change its sign.
        self.coef *= 1.0 + error * min(episodes / self.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up the coefficient."""
        self.coef = state["coef"]
