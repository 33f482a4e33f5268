"""The core's formulas a second time: float64 numpy, written from the definitions with loops, slow and independent.

Nothing of the repository is imported here. A batch is a list of rows without padding, each a 1-D array; `padded` makes
the rectangular arrays that the code under test takes, with poison where the mask is False.
"""

from collections.abc import Sequence

import numpy as np

Rows = Sequence[np.ndarray]
POISONS = (99.0, -99.0, 1e6)


def padded(rows: Rows, fill: float, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows as [batch, width] with `fill` behind each, and the mask of what counts."""
    width = width or max(len(row) for row in rows)
    values = np.full((len(rows), width), fill)
    mask = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        for t, value in enumerate(row):
            values[i, t] = value
            mask[i, t] = True
    return values, mask


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Schulman et al. 2016, eq. 16, as a double sum over one response; the state behind it is worth nothing."""
    steps = len(rewards)
    following = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * following[t] - values[t] for t in range(steps)]
    return np.array([sum((gamma * lam) ** k * delta[t + k] for k in range(steps - t)) for t in range(steps)])


def whiten(rows: Rows) -> list[np.ndarray]:
    """Less the mean over all tokens, by their standard deviation with Bessel's correction."""
    tokens = [float(value) for row in rows for value in row]
    mean = sum(tokens) / len(tokens)
    variance = sum((value - mean) ** 2 for value in tokens) / (len(tokens) - 1)
    return [np.array([(value - mean) / variance**0.5 for value in row]) for row in rows]


def policy_loss(logprobs: Rows, old_logprobs: Rows, advantages: Rows, clip: float) -> tuple[float, float, float]:
    """Loss (Schulman et al. 2017, eq. 7, negated), clip fraction, KL(old || new) by k3; means over tokens."""
    surrogate = clipped = divergence = 0.0
    tokens = 0
    for new_row, old_row, advantage_row in zip(logprobs, old_logprobs, advantages, strict=True):
        for new, old, advantage in zip(new_row, old_row, advantage_row, strict=True):
            ratio = np.exp(new) / np.exp(old)
            surrogate += min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
            clipped += (advantage > 0 and ratio > 1 + clip) or (advantage < 0 and ratio < 1 - clip)
            divergence += kl(old, new, "k3")
            tokens += 1
    return -surrogate / tokens, clipped / tokens, divergence / tokens


def value_loss(values: Rows, old_values: Rows, returns: Rows, clip: float) -> tuple[float, float]:
    """Half the larger of the two squared errors, and how often it is the clipped one; means over tokens."""
    loss = clipped = 0.0
    tokens = 0
    for value_row, old_row, return_row in zip(values, old_values, returns, strict=True):
        for value, old, wanted in zip(value_row, old_row, return_row, strict=True):
            near = min(max(value, old - clip), old + clip)
            free_error, near_error = (value - wanted) ** 2, (near - wanted) ** 2
            loss += max(free_error, near_error) / 2
            clipped += near_error > free_error
            tokens += 1
    return loss / tokens, clipped / tokens


def kl(logprob: float, ref_logprob: float, kind: str) -> float:
    """One token's estimate of KL(p || p_ref) with r = p_ref / p (Schulman 2020)."""
    ratio = np.exp(ref_logprob) / np.exp(logprob)
    return float({"k1": -np.log(ratio), "k2": np.log(ratio) ** 2 / 2, "k3": ratio - 1 - np.log(ratio)}[kind])


def bradley_terry(
    chosen: float,
    rejected: float,
    margin: float = 0.0,
    smoothing: float = 0.0,
    weight: float = 1.0,
    target: float = 1.0,
) -> float:
    """Cross entropy of one vote; with probability `smoothing` the vote says the opposite of what was meant."""
    wins = np.exp(chosen - margin) / (np.exp(chosen - margin) + np.exp(rejected))
    voted_for_chosen, voted_for_rejected = -np.log(wins), -np.log(1 - wins)
    as_meant = target * voted_for_chosen + (1 - target) * voted_for_rejected
    reversed_vote = target * voted_for_rejected + (1 - target) * voted_for_chosen
    return float(weight * ((1 - smoothing) * as_meant + smoothing * reversed_vote))


def shape_rewards(score: float, divergence: np.ndarray, coef: float) -> np.ndarray:
    """One response: every token pays for its divergence, and the score comes with the last."""
    return np.array([-coef * nats + (score if t == len(divergence) - 1 else 0.0) for t, nats in enumerate(divergence)])


def logprob(logits: np.ndarray, token: int, temperature: float = 1.0) -> float:
    """log softmax(logits / temperature)[token] for one position, [vocabulary]."""
    scaled = [float(logit) / temperature for logit in logits]
    highest = max(scaled)
    return scaled[token] - highest - float(np.log(sum(np.exp(logit - highest) for logit in scaled)))


def entropy(logits: np.ndarray, temperature: float = 1.0) -> float:
    """-sum p log p of softmax(logits / temperature) for one position, [vocabulary]."""
    terms = [logprob(logits, token, temperature) for token in range(len(logits))]
    return -sum(float(np.exp(term)) * term for term in terms)


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """The shares p at which the observed share lies exactly 1.96 standard errors of p away: roots of a quadratic."""
    z, share = 1.959963984540054, successes / trials
    low, high = sorted(np.roots([1 + z**2 / trials, -(2 * share + z**2 / trials), share**2]).real)
    return float(low), float(high)


def calibration_error(differences: Sequence[float], bins: int = 10) -> float:
    """Naeini et al. 2015 over [0.5, 1]: each bin's |confidence - accuracy|, weighed by its share of the votes."""
    edges = np.linspace(0.5, 1.0, bins + 1)
    error = 0.0
    for b in range(bins):
        inside = []
        for difference in differences:
            confidence = 1 / (1 + np.exp(-abs(difference)))
            if edges[b] <= confidence < edges[b + 1] or (b == bins - 1 and confidence >= 1.0):
                inside.append((confidence, difference > 0))
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            error += abs(confidence - accuracy) * len(inside) / len(differences)
    return float(error)
