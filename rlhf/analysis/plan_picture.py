"""A picture of `rlhf plan`: what each way to share a stage's models out holds on one GPU. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.analysis.pictures import COLOURS, plain_matplotlib, write_png

GIB = 2**30
LAYERS = ("weights", "gradients", "optimizer", "frozen models", "activations", "logits", "all else")


def layers_of(way: Mapping[str, Any]) -> list[float]:
    """GiB of each of LAYERS in the phase that needs most, of one entry of a plan's `strategies`."""
    sizes = dict.fromkeys(LAYERS, 0.0)
    for parts in way["phases"][way["peak"]].values():
        for part, size in parts.items():
            layer = part if part in LAYERS else "all else"
            if part == "weights" and "optimizer" not in parts:
                layer = "frozen models"
            sizes[layer] += size / GIB
    return list(sizes.values())


def draw_plan(plan: Mapping[str, Any], names: Mapping[str, Sequence[str]], output: Path) -> None:
    """Write a PNG with a panel for each stage, a bar for each of its ways; names: of these, by stage."""
    with plain_matplotlib():
        from matplotlib.figure import Figure

        stages: Mapping[str, Any] = plan["stages"]
        heights = [1.2 + len(stage["strategies"]) for stage in stages.values()]
        drawn = Figure(figsize=(7.0, 0.8 + 0.2 * sum(heights)), layout="constrained")
        panels = drawn.subplots(len(stages), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        room = plan["cluster"]["room"] / GIB
        for axes, (name, stage) in zip(panels, stages.items(), strict=True):
            ways = stage["strategies"]
            places = range(len(ways), 0, -1)
            begun = [0.0] * len(ways)
            for layer, colour, sizes in zip(LAYERS, COLOURS, zip(*map(layers_of, ways), strict=True), strict=False):
                axes.barh(places, sizes, left=begun, color=colour, height=0.7, label=layer)
                begun = [start + size for start, size in zip(begun, sizes, strict=True)]
            labels = [label + " *" * way["own"] for label, way in zip(names[name], ways, strict=True)]
            axes.set_yticks(list(places), labels)
            axes.axvline(room, color="black", lw=0.8, ls="--")
            axes.set_title(name, loc="left")
            axes.grid(axis="y", visible=False)
            axes.set_xlim(0, 2 * room)
        panels[0].legend(ncols=4, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        panels[-1].set_xlabel(
            "GiB on each GPU in the phase that needs most; dashed: what fits; *: as the recipe has it"
        )
        write_png(drawn, output, "Memory by strategy")
