"""Tasks of lm-eval before and after PPO, to show what alignment cost elsewhere.

Both models answer the same examples, so that a difference is measured example by example: its standard error is much
smaller than two independent ones would say (Miller 2024). lm-eval runs on the main rank alone, and quietly.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np

from data.records import one_line
from rlhf.analysis.statistics import mean, standard_error
from rlhf.config import LmEvalConfig
from rlhf.distributed import gather_objects, is_main, main_first
from rlhf.errors import ConfigError
from rlhf.models import load_policy
from rlhf.tokenization import load_tokenization
from stages.benchmark_tasks import FIELD, Tasks, find_tasks
from stages.checkpoints import first
from stages.context import StageContext
from stages.frozen import freeze

LOG = "lm-eval.log"  # in the stage's .partial, gone when it is complete
RESAMPLES = 200  # of the bootstrap, for metrics that are no mean over examples

Outcome = Mapping[str, Any]  # what lm-eval returns for one model


def check_benchmarks(context: StageContext) -> None:
    """Load every task, with its examples, before anything is sampled. Raises ConfigError on all ranks."""
    problem: str | None = None
    with main_first():
        if is_main():
            try:
                with quiet(context):
                    tasks = find_tasks(context.recipe)
                    tasks.manager.load(tasks.specs)
            except ConfigError as error:
                problem = error.problems[0]
            except Exception as error:  # a broken file, a data set that cannot be fetched, whatever its code raises
                problem = f"{FIELD}.tasks: cannot be loaded ({one_line(error)}); correct or remove the task"
    if problem := first(gather_objects(problem)):
        raise ConfigError(problem)


def run_benchmarks(context: StageContext, config: LmEvalConfig) -> dict[str, Any]:
    """By task and metric: before and after with standard errors, and their difference; on the main rank alone.

    What fails here is told and kept as {"error": one line}: the rest of the evaluation is worth having without it.
    """
    compared: dict[str, Any] = {}
    problem: str | None = None
    with main_first(), context.progress(2) as progress:
        if is_main():
            try:
                before = evaluate_model(context, "sft", config)
                progress.update(1, {})
                after = evaluate_model(context, "ppo", config)
                progress.update(2, {})
                compared = compare(before, after, aggregations(context))
            except Exception as error:  # whatever a task's own code, its data or lm-eval raises
                problem = f"{type(error).__name__}: {one_line(error)}"
    if problem := first(gather_objects(problem)):
        context.warn(f"{FIELD}: failed ({problem}); rlhf evaluate RECIPE --force tries again")
        return {"error": problem}
    context.tracker.log(0, dict(flat(compared)))
    return compared


def flat(compared: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and figures for trackers."""
    for task, found in compared.items():
        for metric, figure in found["metrics"].items():
            for when in ("before", "after"):
                yield f"lm_eval/{task}/{metric}_{when}", figure[when]


def evaluate_model(context: StageContext, stage: str, config: LmEvalConfig) -> Outcome:
    """What lm-eval measures of a stage's policy."""
    recipe, directory = context.recipe, context.inputs[stage].model
    tokenization = load_tokenization(directory, recipe.model)
    policy = freeze(load_policy(directory, tokenization, recipe.model), recipe)
    with quiet(context):
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        tasks = find_tasks(recipe)
        outcome: Outcome = lm_eval.simple_evaluate(
            model=HFLM(pretrained=policy, tokenizer=tokenization.tokenizer, batch_size=config.batch_size),
            tasks=tasks.specs,
            task_manager=tasks.manager,
            num_fewshot=config.few_shot,
            limit=config.limit,
            bootstrap_iters=RESAMPLES,
        )
    return outcome


def aggregations(context: StageContext) -> dict[str, dict[str, Callable[[list[Any]], float]]]:
    """By task and metric, how the figures of single examples become one."""
    with quiet(context):
        tasks: Tasks = find_tasks(context.recipe)
        loaded = tasks.manager.load(tasks.specs)["tasks"]
    return {name: task.aggregation() for name, task in loaded.items()}


def compare(
    before: Outcome, after: Outcome, aggregations: Mapping[str, Mapping[str, Callable[[list[Any]], float]]]
) -> dict[str, Any]:
    """Two outcomes of the same tasks on the same examples, side by side."""
    inner = {task for tasks in before["group_subtasks"].values() for task in tasks}
    compared: dict[str, Any] = {}
    for task, figures in before["results"].items():
        metrics = {}
        for key in [key for key in figures if "," in key and "_stderr," not in key]:
            metric, _, chosen = key.partition(",")
            examples = [
                [sample[metric] for sample in outcome["samples"].get(task, []) if sample["filter"] == chosen]
                for outcome in (before, after)
            ]
            errors = standard_errors(examples[0], examples[1], aggregations.get(task, {}).get(metric, mean))
            if errors is None:  # a group of tasks, or a metric of another kind: as if the two were independent
                own = [outcome["results"][task].get(f"{metric}_stderr,{chosen}") for outcome in (before, after)]
                known = [float(error) if isinstance(error, float) else None for error in own]
                both = math.hypot(known[0], known[1]) if known[0] is not None and known[1] is not None else None
                errors = (known[0], known[1], both)
            first_value, second_value = (float(outcome["results"][task][key]) for outcome in (before, after))
            metrics[metric if chosen == "none" else f"{metric} ({chosen})"] = {
                "before": first_value,
                "before_stderr": errors[0],
                "after": second_value,
                "after_stderr": errors[1],
                "difference": second_value - first_value,
                "difference_stderr": errors[2],
                "higher_is_better": before["higher_is_better"].get(task, {}).get(metric),
            }
        compared[task] = {"metrics": metrics, "part_of_a_group": task in inner}
    return compared


def standard_errors(
    before: Sequence[Any], after: Sequence[Any], aggregate: Callable[[list[Any]], float]
) -> tuple[float | None, float | None, float | None] | None:
    """Of a metric before, after, and of its difference, from the figures of the same examples; None for other kinds.

    Means of numbers by the formula; perplexities and the like, whose examples are (log-likelihood, length), by the
    bootstrap, which draws the same examples for both.
    """
    if not before or len(before) != len(after):
        return None
    if all(isinstance(value, int | float) for value in (*before, *after)):
        if not math.isclose(aggregate(list(before)), mean(before), abs_tol=1e-9):
            return None
        differences = [b - a for a, b in zip(before, after, strict=True)]
        return standard_error(before), standard_error(after), standard_error(differences)
    if not all(isinstance(value, tuple) and len(value) == 2 for value in (*before, *after)):
        return None
    draws = np.random.default_rng(0).integers(0, len(before), size=(RESAMPLES, len(before)))
    first_drawn = np.array([aggregate([before[i] for i in draw]) for draw in draws])
    second_drawn = np.array([aggregate([after[i] for i in draw]) for draw in draws])
    spread = [float(drawn.std(ddof=1)) for drawn in (first_drawn, second_drawn, second_drawn - first_drawn)]
    return spread[0], spread[1], spread[2]


@contextmanager
def quiet(context: StageContext) -> Iterator[None]:
    """What lm-eval and its children say, bars and notes, goes to a file; what it raises comes through."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with (context.partial / LOG).open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
