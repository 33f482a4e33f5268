"""Figures of a stage that say it learned little or nothing: what the stage warns of, and the summary repeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEAR_UNIFORM = 0.85  # of the loss of a model that knows nothing


def doubt_of_sft(results: Mapping[str, Any]) -> str | None:
    """What to think of the held-out loss, nats per token, if it is near that of guessing; None where it is not.

    results: with `eval_loss`, and `uniform_loss`, the logarithm of the vocabulary's size.
    """
    loss, uniform = results.get("eval_loss"), results.get("uniform_loss")
    if loss is None or uniform is None or loss < NEAR_UNIFORM * uniform:
        return None
    return (
        f"hardly learned: a held-out loss of {loss:.3f} where guessing gives {uniform:.3f}; give more demonstrations, "
        "or raise sft.epochs or sft.learning_rate"
    )


def doubt_of_reward(results: Mapping[str, Any]) -> str | None:
    """What to think of a held-out accuracy that is not surely better than chance; None where it is.

    results: with `accuracy_ci`, its 95 % interval, and `use` if the reward was not trained here.
    """
    low, high = results.get("accuracy_ci", (1.0, 1.0))
    if low > 0.5:
        return None
    used = "use" in results
    interval = f"the 95 % interval of its held-out accuracy is {low:.3f} to {high:.3f}"
    if high < 0.5:
        question = "is the sign of reward.use turned?" if used else "are chosen and rejected swapped in the data?"
        return f"prefers what people rejected: {interval}; {question}"
    remedy = "try another reward.use" if used else "give more votes, or raise reward.epochs or reward.learning_rate"
    return f"no better than chance: {interval}; {remedy}"
