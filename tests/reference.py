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


def rewards_to_go(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """What comes from each token on, discounted: Hu et al. 2025, "REINFORCE++", eq. 5."""
    steps = len(rewards)
    return np.array([sum(gamma ** (later - t) * rewards[later] for later in range(t, steps)) for t in range(steps)])


def rloo(rewards: Rows, group: int) -> list[np.ndarray]:
    """Each response's sum less the mean of the others of its group, at all its tokens: Ahmadian et al. 2024, eq. 7."""
    advantages = []
    for i, row in enumerate(rewards):
        first = i // group * group
        others = [float(sum(rewards[j])) for j in range(first, first + group) if j != i]
        advantages.append(np.full(len(row), float(sum(row)) - sum(others) / len(others)))
    return advantages


def grpo(rewards: Rows, group: int) -> list[np.ndarray]:
    """Each response's sum in standard deviations of its group, at all its tokens: Shao et al. 2024, section 4.1.2."""
    advantages = []
    for i, row in enumerate(rewards):
        first = i // group * group
        totals = [float(sum(rewards[j])) for j in range(first, first + group)]
        mean = sum(totals) / group
        deviation = (sum((total - mean) ** 2 for total in totals) / (group - 1)) ** 0.5
        advantages.append(np.full(len(row), (totals[i - first] - mean) / (deviation + 1e-6)))
    return advantages


def whiten(rows: Rows, shift: bool = True, scale: bool = True) -> list[np.ndarray]:
    """Over all tokens: the spread about the mean, in standard deviations (Bessel) if scaled; the mean goes if shifted.

    Ziegler et al. 2019 whiten advantages with the shift, and rewards without: their mean stays.
    """
    tokens = [float(value) for row in rows for value in row]
    mean = sum(tokens) / len(tokens)
    deviation = (sum((value - mean) ** 2 for value in tokens) / (len(tokens) - 1)) ** 0.5 if scale else 1.0
    return [np.array([(value - mean) / deviation + (0.0 if shift else mean) for value in row]) for row in rows]


def policy_loss(
    logprobs: Rows,
    old_logprobs: Rows,
    advantages: Rows,
    clip: float,
    clip_high: float | None = None,
    ratio: str = "token",
    weights: Rows | None = None,
) -> tuple[float, float, float]:
    """Loss (Schulman et al. 2017, eq. 7, negated), clip fraction, KL(old || new) by k3; means over tokens.

    ratio "sequence": Zheng et al. 2025, eq. 7, the likelihoods' ratio to the power 1 / length, at each token.
    """
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    surrogate = clipped = divergence = 0.0
    tokens = 0
    for i, (new_row, old_row, advantage_row) in enumerate(zip(logprobs, old_logprobs, advantages, strict=True)):
        ratios = [np.exp(new) / np.exp(old) for new, old in zip(new_row, old_row, strict=True)]
        held = [float(np.prod(ratios)) ** (1 / len(ratios))] * len(ratios) if ratio == "sequence" else ratios
        for t, (value, advantage) in enumerate(zip(held, advantage_row, strict=True)):
            weight = 1.0 if weights is None else weights[i][t]
            surrogate += weight * min(value * advantage, min(max(value, low), high) * advantage)
            clipped += (advantage > 0 and value > high) or (advantage < 0 and value < low)
            divergence += kl(old_row[t], new_row[t], "k3")
            tokens += 1
    return -surrogate / tokens, clipped / tokens, divergence / tokens


def value_loss(values: Rows, old_values: Rows, returns: Rows, clip: float | None) -> tuple[float, float]:
    """Half the larger of the two squared errors, and how often it is the clipped one; means over tokens."""
    loss = clipped = 0.0
    tokens = 0
    for value_row, old_row, return_row in zip(values, old_values, returns, strict=True):
        for value, old, wanted in zip(value_row, old_row, return_row, strict=True):
            near = value if clip is None else min(max(value, old - clip), old + clip)
            free_error, near_error = (value - wanted) ** 2, (near - wanted) ** 2
            loss += max(free_error, near_error) / 2
            clipped += near_error > free_error
            tokens += 1
    return loss / tokens, clipped / tokens


def kl(logprob: float, ref_logprob: float, kind: str) -> float:
    """One token's estimate of KL(p || p_ref) with r = p_ref / p (Schulman 2020)."""
    ratio = np.exp(ref_logprob) / np.exp(logprob)
    return float({"k1": -np.log(ratio), "k2": np.log(ratio) ** 2 / 2, "k3": ratio - 1 - np.log(ratio)}[kind])


def kl_loss(logprobs: Rows, ref_logprobs: Rows, kind: str) -> float:
    """The estimates' mean over all tokens."""
    found = [kl(*pair, kind) for rows in zip(logprobs, ref_logprobs, strict=True) for pair in zip(*rows, strict=True)]
    return sum(found) / len(found)


def importance_weights(logprobs: np.ndarray, sampler_logprobs: np.ndarray, cap: float) -> np.ndarray:
    """Yao et al. 2025: how much likelier each token is to the trainer than to the sampler, at most `cap`."""
    return np.array([min(np.exp(p) / np.exp(q), cap) for p, q in zip(logprobs, sampler_logprobs, strict=True)])


def adaptive_coefficients(coef: float, steps: Sequence[tuple[float, int]], target: float, horizon: int) -> list[float]:
    """Ziegler et al. 2019, section 2.2: the coefficient behind each step (KL, episodes)."""
    found = []
    for divergence, episodes in steps:
        error = (divergence - target) / target
        error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
        coef = coef * (1 + error * (1.0 if episodes > horizon else episodes / horizon))
        found.append(coef)
    return found


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


def running_scores(steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each step's scores by mean and deviation (Bessel) of all there were until then, its own among them."""
    normalised = []
    for step in range(len(steps)):
        seen = [float(score) for scores in steps[: step + 1] for score in scores]
        mean = sum(seen) / len(seen)
        variance = sum((score - mean) ** 2 for score in seen) / (len(seen) - 1) if len(seen) > 1 else 0.0
        deviation = variance**0.5 if variance > 0 else 1.0
        normalised.append(np.array([(float(score) - mean) / deviation for score in steps[step]]))
    return normalised


def overlong(length: int, longest: int, tokens: int, penalty: float) -> float:
    """What a response of some length pays: Yu et al. 2025, "DAPO", eq. 13."""
    if length <= longest - tokens:
        return 0.0
    return penalty if length > longest else penalty * (length - (longest - tokens)) / tokens


def shape_score(score: float, scale: float, clip: float | None, fines: float) -> float:
    """One normalised score: scaled, then clipped, and what it pays is not clipped."""
    scaled = score * scale
    if clip is not None:
        scaled = min(max(scaled, -clip), clip)
    return scaled - fines


def kept_by_top_p(probabilities: Sequence[float], top_p: float) -> tuple[set[int], float]:
    """Holtzman et al. 2020: the likeliest tokens until they hold `top_p`, and what they hold."""
    kept: set[int] = set()
    held = 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if held >= top_p:
            break
        kept.add(token)
        held += probabilities[token]
    return kept, held


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
