"""A run's curves in one picture: what each stage measured, by step, in small panels.

`draw(run, run / "curves.png")` is what `rlhf run` does behind its summary and `rlhf curves RUN` does at any time. Needs
no display and loads no torch.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.analysis.metrics import Figures, read_run
from rlhf.analysis.pictures import COLOURS, QUIET, label, plain_matplotlib, save_png
from rlhf.analysis.statistics import Z_95
from rlhf.errors import ArtifactError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
TRAINING, HELD_OUT, FINAL, *_ = COLOURS
COLUMNS = 3
RING: Any = {"color": FINAL, "linestyle": "", "marker": "o", "markersize": 9, "fillstyle": "none", "zorder": 4}


@dataclass(frozen=True)
class Panel:
    """One small plot: metric keys of one stage, and what they mean."""

    stage: str
    title: str
    unit: str
    training: str | None = None  # key of what training logs at each step
    held_out: str | None = None  # key of what is measured on held-out examples
    level: float | None = None  # a value to compare with, such as chance
    floor: float | None = None  # what lies below is cut off, and the panel says so


PANELS = (
    Panel("sft", "SFT loss", "nats per token", "loss/sft", "eval/loss"),
    Panel("reward", "Reward loss", "nats per pair", "loss/reward", "eval/loss"),
    Panel("reward", "Reward accuracy", "share of pairs", "reward/train_accuracy", "reward/accuracy", level=0.5),
    Panel("reward", "Reward margin", "chosen over rejected", "reward/train_margin", "reward/margin"),
    Panel("ppo", "PPO score", "as PPO is paid", "objective/scores", "eval/scores"),
    Panel("ppo", "PPO judge", "held out", held_out="eval/judge"),
    Panel("ppo", "PPO KL to SFT", "nats per response", "objective/kl", "eval/kl"),
    Panel("ppo", "PPO response length", "tokens", "tokens/response_length", "eval/response_length"),
    Panel("ppo", "PPO entropy", "nats per token", "objective/entropy"),
    Panel("ppo", "PPO clip fraction", "share of tokens", "policy/clipfrac"),
    Panel("ppo", "PPO explained variance", "of returns", "val/explained_variance", level=1.0, floor=-1.0),
)


def draw(run: Path, output: Path) -> bool:
    """Write the curves of a run, whole or not at all; False where the file already shows these figures.

    Raises ArtifactError where there are no figures, or where the file cannot be written.
    """
    if output.suffix.lower() not in FORMATS:
        raise ArtifactError(f"{output}: not the name of a picture; it should end in {' or '.join(FORMATS)}")
    figures = read_run(run)
    name = run.resolve().name
    shown = repr((name, [(stage, found.by_step, found.results) for stage, found in figures.items()]))
    mark = hashlib.sha256(shown.encode()).hexdigest()
    partial = output.with_name(f".{output.name}.partial")
    try:
        if output.is_file() and mark.encode() in output.read_bytes():
            return False
        content = render(figures, name, output.suffix.lower(), mark)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(output)
    except OSError as error:
        remedy = "make room, or give another place with --output"
        raise ArtifactError(f"{output}: cannot be written ({error.strerror or error}); {remedy}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return True


def render(figures: Mapping[str, Figures], name: str, suffix: str, mark: str) -> bytes:
    """The picture as a file's content; `mark`, which says what it shows, stands in its metadata."""
    file = io.BytesIO()
    with plain_matplotlib():
        drawn = picture(figures, name)
        if suffix == ".png":
            save_png(drawn, file, {"Title": name, "Source": mark})
        else:
            undated = {"Date" if suffix == ".svg" else "CreationDate": None}  # equal figures, equal files
            drawn.savefig(file, format=suffix[1:], metadata={"Title": name, "Keywords": mark, **undated})
    return file.getvalue()


def picture(figures: Mapping[str, Figures], name: str) -> Figure:
    """The figure: a panel for each thing that was measured, and one for the final evaluation."""
    from matplotlib.figure import Figure as Canvas  # not pyplot, which would look for a display
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = [panel for panel in PANELS if panel.stage in figures and is_measured(panel, figures[panel.stage])]
    evaluated = "evaluate" in figures and bool(figures["evaluate"].results)
    count = len(panels) + evaluated
    rows = max(1, math.ceil(count / COLUMNS))
    canvas = Canvas(figsize=(9.0, 0.8 + 1.75 * rows), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08))
    axes = [canvas.add_subplot(rows, COLUMNS, place + 1) for place in range(count)]
    for panel, ax in zip(panels, axes, strict=False):
        draw_panel(ax, panel, figures[panel.stage])
    if evaluated:
        draw_evaluation(axes[-1], figures["evaluate"])
    canvas.suptitle(name, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    canvas.supxlabel("step of each stage", fontsize=8, color=QUIET)
    add_legend(canvas, "ppo" in figures and "best_step" in figures["ppo"].results)
    return canvas


def is_measured(panel: Panel, figures: Figures) -> bool:
    """Whether a stage has logged anything that a panel shows."""
    return any(key in figures.by_step for key in (panel.training, panel.held_out) if key)


def draw_panel(ax: Axes, panel: Panel, figures: Figures) -> None:
    """Each step in a light line, the moving mean in a dark one, what was held out as points."""
    from matplotlib.ticker import MaxNLocator

    label(ax, panel.title, panel.unit)
    if panel.level is not None:
        ax.axhline(panel.level, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if panel.training:
        steps, values = figures.series(panel.training)
        window = max(1, len(values) // 30)
        ax.plot(steps, values, color=TRAINING, linewidth=0.8, alpha=0.3, marker=dot(steps), markersize=3.5)
        ax.plot(steps, moving_mean(values, window), color=TRAINING, linewidth=1.4)
    if panel.held_out:
        draw_held_out(ax, figures, panel.held_out)
    if panel.floor is not None and ax.get_ylim()[0] < panel.floor:
        ax.set_ylim(bottom=panel.floor)
        label(ax, panel.title, f"{panel.unit}, cut at {panel.floor:g}")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.margins(x=0.02)


def draw_held_out(ax: Axes, figures: Figures, key: str) -> None:
    """Points, a band of 95 % where the standard error was logged, and a ring around the policy kept as best."""
    values, errors = figures.by_step.get(key, {}), figures.by_step.get(f"{key}_stderr", {})
    steps = sorted(values.keys() & errors.keys())
    low = [values[step] - Z_95 * errors[step] for step in steps]
    high = [values[step] + Z_95 * errors[step] for step in steps]
    ax.fill_between(steps, low, high, color=HELD_OUT, alpha=0.15, linewidth=0)
    ax.plot(*figures.series(key), color=HELD_OUT, linewidth=1.0, marker="o", markersize=3.5, zorder=3)
    best = figures.results.get("best_step")
    if best is not None and best in values:
        ax.plot([best], [values[best]], **RING)


def draw_evaluation(ax: Axes, figures: Figures) -> None:
    """The final evaluation: the mean score of the policy before and after, by who judges."""
    results = figures.results
    label(ax, "Final evaluation", f"by {str(results.get('judge', 'the reward model'))[-24:]}")
    pairs = [(f"{name}_before", f"{name}_after", "o") for name in ("gold", "judged")]
    pairs += [("second_gold_before", "second_gold_after", "s")]
    for before, after, marker in pairs:
        if before in results and after in results:
            heights = [results[before], results[after]]
            ax.plot([0, 1], heights, color=FINAL, linewidth=1.4, marker=marker, markersize=5)
            for place, height in enumerate(heights):
                ax.annotate(f"{height:.3f}", (place, height), (0, 6), textcoords="offset points", ha="center")
    if "win_rate" in results:
        ax.text(0.5, 0.03, f"win rate {results['win_rate']:.3f}", transform=ax.transAxes, ha="center", color=QUIET)
    ax.set_xticks([0, 1], ["SFT", "PPO"])
    ax.margins(x=0.25, y=0.35)
    ax.grid(axis="x", visible=False)


def dot(steps: Sequence[int]) -> str | None:
    """A marker where a line of one step would not be seen."""
    return "o" if len(steps) == 1 else None


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of up to `window` values before and behind each, gaps (nan) left out."""
    means = []
    for place in range(len(values)):
        near = [v for v in values[max(0, place - window) : place + window + 1] if not math.isnan(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def add_legend(canvas: Figure, best: bool) -> None:
    """What the colours mean, once for all panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=TRAINING, linewidth=0.8, alpha=0.4, label="training, each step"),
        Line2D([], [], color=TRAINING, linewidth=1.4, label="moving mean"),
        Line2D([], [], color=HELD_OUT, linewidth=1.0, marker="o", markersize=3.5, label="held out"),
    ]
    handles += [Line2D([], [], label="kept as best", **RING)] if best else []
    canvas.legend(handles=handles, loc="upper right", ncols=4, frameon=False, fontsize=7.5)
