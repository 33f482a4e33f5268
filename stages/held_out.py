"""Evaluation while PPO trains: always the same held-out prompts, sampled with the same noise.

Before the first step and every `ppo.evaluate_every` steps: the reward's score, the judge's if one is named, KL, length,
and the responses themselves, so that one prompt can be followed through the steps. The judge's mean score, or the
reward's where there is no judge, says which policy is the best, and when training has nothing more to gain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf.analysis.statistics import mean, standard_error
from rlhf.beacons import at_step, enter, phase
from rlhf.errors import RewardError
from rlhf.store.samples import conversations
from stages.cast import Cast
from stages.context import StageContext
from stages.rewards import named_reward
from stages.rollout import Answer, respond


@dataclass(frozen=True)
class Evaluation:
    """Means over the held-out prompts of the policy after one step; step 0 is the SFT model."""

    step: int
    score: float  # the judge's: what decides
    reward: float
    kl: float  # nats per response


class HeldOut:
    """The evaluations of one PPO run, and what follows from them. All ranks make the same calls."""

    def __init__(self, context: StageContext, cast: Cast) -> None:
        self.context = context
        self.actors = cast.actors
        self.config = config = context.recipe.ppo
        self.evaluations: list[Evaluation] = []
        self.prompts = cast.prompts.test[: config.held_out.prompts]
        name, tokenization = config.held_out.judge, cast.actors.tokenization
        self.judge = named_reward(name, tokenization, context.recipe, cast.sharding) if name else None
        if config.evaluate_every and len(self.prompts) < config.held_out.prompts:
            context.say(f"evaluates on all {len(self.prompts)} held-out prompts, fewer than ppo.held_out.prompts")

    def steps(self, start: int) -> Iterator[int]:
        """The steps still to be made behind `start`: to the last one, or until patience is at its end."""
        step = start
        enter("train")
        while not self.ended(step):
            step += 1
            at_step(step)
            yield step
        enter("finish")

    def ended(self, step: int) -> bool:
        """Whether no step follows."""
        return step >= self.config.steps or self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the last `ppo.held_out.patience` evaluations all were no better than one before them."""
        patience = self.config.held_out.patience
        if patience is None or not self.evaluations:
            return False
        warm = self.config.value_warmup_steps if self.config.has_value else 0
        since = self.evaluations[self.evaluations.index(self.best) + 1 :]
        return sum(evaluation.step > warm for evaluation in since) >= patience  # until then the policy stands still

    @property
    def ranked(self) -> list[Evaluation]:
        """All evaluations, the best first; of equal ones the earlier, which is nearer to the SFT model."""
        return sorted(self.evaluations, key=lambda evaluation: _descending(evaluation.score))

    @property
    def best(self) -> Evaluation:
        """The evaluation with the highest score."""
        return self.ranked[0]

    def evaluate_start(self) -> float | None:
        """The score of the policy before the first step, evaluated now if no checkpoint has it."""
        if not self.evaluations:
            return self.evaluate(0)
        return self.evaluations[0].score if math.isfinite(self.evaluations[0].score) else None

    def evaluate(self, step: int) -> float | None:
        """Evaluate the present policy if that is due after a step: its score, higher is better, else None."""
        every = self.config.evaluate_every
        if not every or (step % every and step < self.config.steps):
            return None
        with phase("evaluate"):
            answers = respond(self.actors, self.prompts, self.config, self.context.recipe.seed, self.judge)
        if step == 0:
            require_scores(answers)
        self.context.tracker.table(step, "held-out", self._rows(step, answers))
        figures = figures_of(answers, self.judge is not None)
        self.context.tracker.log(step, figures)
        score = figures["eval/judge" if self.judge else "eval/scores"]
        self.evaluations.append(Evaluation(step, score, figures["eval/scores"], figures["eval/kl"]))
        if self.exhausted and step < self.config.steps:
            self.context.say(
                f"ended early after step {step}: {self.config.held_out.patience} evaluations without a better "
                f"held-out score than {self.best.score:.3f} of step {self.best.step}"
            )
        return score if math.isfinite(score) else None

    def _rows(self, step: int, answers: Sequence[Answer]) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        turns = conversations([answer.completion.prompt for answer in answers])
        for index, answer in enumerate(answers):
            completion = answer.completion
            row = {"step": step, "index": index, "prompt": completion.prompt.text, "response": completion.response}
            judged = {"judge": answer.judged} if self.judge else {}
            tokens = {"tokens": len(completion.response_tokens), "finished": completion.finished}
            rows.append({**row, "score": answer.score, **judged, "kl": answer.kl, **tokens})
            rows[-1] |= {name: column[index] for name, column in turns.items()}
        return rows

    def results(self, step: int, kept: Evaluation | None) -> dict[str, Any]:
        """What the manifest says of a run that ended after a step; kept: the evaluation whose policy is in best/."""
        if not self.evaluations:
            return {"stopped_early": False}
        best, last = kept or self.best, self.evaluations[-1]
        return {
            "judge": self.config.held_out.judge or "reward",
            "best_step": best.step,
            "best_score": best.score,
            "best_reward": best.reward,
            "best_kl": best.kl,
            "last_score": last.score,
            "last_reward": last.reward,
            "stopped_early": step < self.config.steps,
        }

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint holds of this."""
        return [asdict(evaluation) for evaluation in self.evaluations]

    def load_state(self, state: Sequence[dict[str, Any]]) -> None:
        """Take up what `state` gave."""
        self.evaluations = [Evaluation(**evaluation) for evaluation in state]


def require_scores(answers: Sequence[Answer]) -> None:
    """Raise RewardError where a score is not finite, before anything is trained."""
    for answer in answers:
        if not math.isfinite(answer.score):
            response, prompt = answer.completion.response, answer.completion.prompt.text
            raise RewardError(
                f"the reward gave {answer.score} for the response {response[:60]!r} to the held-out prompt "
                f"{prompt[:60]!r} before the first step; every score must be a finite number"
            )


def figures_of(answers: Sequence[Answer], judged: bool) -> dict[str, float]:
    """Means over answers, and the standard errors of those that policies are compared by."""
    columns = {"scores": [answer.score for answer in answers]}
    if judged:
        columns["judge"] = [answer.judged for answer in answers]
    figures = {}
    for name, values in columns.items():
        figures[f"eval/{name}"] = mean(values)
        figures[f"eval/{name}_stderr"] = standard_error(values)
    figures["eval/kl"] = mean([answer.kl for answer in answers])  # nats per response
    figures["eval/response_length"] = mean([len(answer.completion.response_tokens) for answer in answers])
    figures["eval/finished"] = mean([answer.completion.finished for answer in answers])
    return figures


def _descending(score: float) -> float:
    """A key to sort scores by, the highest first; one that is not finite is the last."""
    return -score if math.isfinite(score) else math.inf
