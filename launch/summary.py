"""A run's summary as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.analysis.doubts import doubt_of_reward, doubt_of_sft


def show_summary(summary: Mapping[str, Any], run: Path, console: Console) -> None:
    """Print the headline figures and where everything lies."""
    table = Table(title=f"run {summary['run']}, {summary['seconds']:.0f} s", title_justify="left")
    table.add_column("stage")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for row in rows(summary):
        table.add_row(*row)
    console.print(table)
    console.print(f"models, figures and samples: {run}", highlight=False, soft_wrap=True)


def rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Stage, figure and value of each line."""
    if sft := summary.get("sft"):
        yield from used("sft", sft)
        if "eval_loss" in sft:
            yield "sft", "held-out loss, nats per token", f"{sft['eval_loss']:.3f}"
        yield from doubted(doubt_of_sft(sft))
    if reward := summary.get("reward"):
        yield from used("reward", reward)
        if "accuracy" in reward:
            yield "reward", "held-out accuracy", with_interval(reward["accuracy"], reward["accuracy_ci"])
        if reward.get("bayes_accuracy"):
            share = reward["accuracy"] / reward["bayes_accuracy"]
            yield "", "of the best possible (Bayes)", f"{share:.3f} of {reward['bayes_accuracy']:.3f}"
        yield from doubted(doubt_of_reward(reward))
    ppo = summary.get("ppo", {})
    if "episodes" in ppo:
        yield "ppo", "episodes", f"{ppo['episodes']:,} in {ppo['seconds']:.0f} s"
    if "best_step" in ppo:
        best = f"{ppo['best_score']:.3f} after step {ppo['best_step']}"
        who = ppo.get("held_out_judge", "reward")
        by = "the reward" if who == "reward" else who
        yield "", f"best held-out score by {by}, and the last", f"{best}, {ppo['last_score']:.3f}"
    if "win_rate" in ppo:
        scores = "gold" if "gold_before" in ppo else "judged"
        yield "evaluate", ppo["judge"], f"{ppo[f'{scores}_before']:.3f} -> {ppo[f'{scores}_after']:.3f}"
        if "second_gold_after" in ppo:
            yield "", "second gold", f"{ppo['second_gold_before']:.3f} -> {ppo['second_gold_after']:.3f}"
        by = ", by the reward PPO was trained on" if ppo.get("judge_trained_on") else ""
        yield "", f"win rate against SFT{by}", with_interval(ppo["win_rate"], ppo["win_rate_ci"])
        yield "", "KL to SFT, nats per response", f"{ppo['kl']:.2f}"
    for best in ppo.get("best_of", ()):
        gold = f"{best.get('gold', best.get('judged')):.3f}, win rate {best['win_rate']:.3f}"
        yield "", f"best of {best['n']} by the reward, at a KL of {best['kl']:.2f}", gold
    benchmarks = ppo.get("lm_eval", {})
    if isinstance(benchmarks.get("error"), str):
        yield "", "lm-eval", f"failed: {benchmarks['error']}; rlhf evaluate RECIPE --force tries again"
        return
    for task, figures in benchmarks.items():
        for metric, figure in figures["metrics"].items() if not figures["part_of_a_group"] else ():
            yield "", f"lm-eval {task}, {metric}", change(figure)


def change(figure: Mapping[str, Any]) -> str:
    """A figure before and after, and the difference with its standard error."""
    error = figure["difference_stderr"]
    spread = "" if error is None else f" ± {error:.2g}"
    return f"{figure['before']:.4g} -> {figure['after']:.4g} ({figure['difference']:+.2g}{spread})"


def doubted(doubt: str | None) -> Iterator[tuple[str, str, str]]:
    """What to think of a figure above, if there is doubt."""
    if doubt:
        what, _, why = doubt.partition(": ")
        yield "", f"warning: {what}", why


def used(stage: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was used in a stage's place."""
    if "use" in figures:
        yield stage, "used", str(figures["use"])


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """A figure with its 95 % interval."""
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
