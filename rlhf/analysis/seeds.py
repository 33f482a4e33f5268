"""One configuration over several seeds: the headline figures side by side, and whether a claim holds on all of them.

Show it: python -m rlhf.analysis.seeds runs/demo-*
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import ArtifactError


def share_of_bayes(summary: dict[str, Any]) -> str:
    """The reward model's accuracy, the best possible one, and their ratio."""
    reward = summary["reward"]
    accuracy, best = reward["accuracy"], reward["bayes_accuracy"]
    return f"{accuracy:.3f} / {best:.3f} = {accuracy / best:.3f}" if best else f"{accuracy:.3f}"


def score(name: str, when: str) -> Callable[[dict[str, Any]], str]:
    """The final judge's mean score; a dash where its scores have another name: `gold`, or `judged` without a gold."""

    def cell(summary: dict[str, Any]) -> str:
        ppo = summary["ppo"]
        if f"{name}_{when}" not in ppo:
            return "-"
        return f"{ppo[f'{name}_{when}']:.3f}"

    return cell


def rise(summary: dict[str, Any]) -> str:
    """The difference of the judge's mean scores."""
    ppo = summary["ppo"]
    name = "gold" if "gold_after" in ppo else "judged"
    return f"{ppo[f'{name}_after'] - ppo[f'{name}_before']:+.3f}"


def second_gold(summary: dict[str, Any]) -> str:
    """Before and after, or a dash where a recipe names none."""
    ppo = summary["ppo"]
    if "second_gold_after" not in ppo:
        return "-"
    return f"{ppo['second_gold_before']:.3f} to {ppo['second_gold_after']:.3f}"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "run": lambda s: s["run"],
    "seconds": lambda s: f"{s['seconds']:.0f}",
    "reward / Bayes": share_of_bayes,
    "gold before": score("gold", "before"),
    "gold after": score("gold", "after"),
    "judged before": score("judged", "before"),
    "judged after": score("judged", "after"),
    "rise": rise,
    "win rate (95 %)": lambda s: "{:.3f} ({:.3f} to {:.3f})".format(s["ppo"]["win_rate"], *s["ppo"]["win_rate_ci"]),
    "second gold": second_gold,
    "KL, nats": lambda s: f"{s['ppo']['kl']:.2f}",
}


def read_summaries(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The summaries of complete runs, each under its directory's name; ArtifactError for one without."""
    summaries = []
    for run in runs:
        path = run / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "win_rate" not in summary.get("ppo", {}):
            raise ArtifactError(f"{run}: no complete run; finish it with rlhf run {run / 'recipe.yaml'} --run {run}")
        summaries.append(summary | {"run": run.name})
    return summaries


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """A markdown table, a row a run; a column that no run has a figure for is left out."""
    columns = {name: [cell(summary) for summary in summaries] for name, cell in COLUMNS.items()}
    shown = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
    rows = [list(shown), ["---"] * len(shown), *map(list, zip(*shown.values(), strict=True))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table of the runs named on the command line."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: {(__doc__ or '').strip().splitlines()[-1].removeprefix('Show it: ')}")
    try:
        print(table(read_summaries([Path(name) for name in sys.argv[1:]])))
    except ArtifactError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
