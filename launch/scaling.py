"""How the cost of a PPO update grows with batch, length and model: one bench for each, and a line through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.bench import Bench, Contestant


@dataclass(frozen=True)
class Fit:
    """Least squares through points (x, seconds), each weighed by 1 / seconds so that small ones count as well."""

    fixed: float  # seconds at x = 0
    slope: float  # seconds a unit of x
    worst: float  # largest distance of a point from the line, as a share of the point
    exponent: float  # of the power of x that fits best; 1: linear

    @classmethod
    def through(cls, xs: Sequence[float], seconds: Sequence[float]) -> Fit:
        """The line through at least two points."""
        weights = [1 / each**2 for each in seconds]
        fixed, slope = _line(xs, seconds, weights)
        worst = max(abs(fixed + slope * x - y) / y for x, y in zip(xs, seconds, strict=True))
        _, exponent = _line([math.log(x) for x in xs], [math.log(y) for y in seconds], [1.0] * len(xs))
        return cls(fixed, slope, worst, exponent)


def _line(xs: Sequence[float], ys: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    total = sum(weights)
    x = sum(w * each for w, each in zip(weights, xs, strict=True)) / total
    y = sum(w * each for w, each in zip(weights, ys, strict=True)) / total
    spread = sum(w * (each - x) ** 2 for w, each in zip(weights, xs, strict=True))
    slope = sum(w * (a - x) * (b - y) for w, a, b in zip(weights, xs, ys, strict=True)) / spread
    return y - slope * x, slope


def sweep(
    base: Mapping[str, Any],
    values: Mapping[str, Sequence[Any]],
    dtype: str,
    device: str,
    updates: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Measure `base` with each value of each field of it; every load is measured once.

    Returns {"sweeps": {field: {"points": [{"value", "tokens", "operations", "seconds", "phases", "peak_memory_bytes",
    "mfu"}], "fit": Fit over tokens; over operations where models differ}}, "ceiling_gflops", "load"}.
    """
    loads = [{**base, name: value} for name in values for value in values[name]]
    distinct = [load for i, load in enumerate(loads) if load not in loads[:i]]
    found: list[dict[str, Any]] = []
    ceilings: dict[str, float] = {}
    for number, load in enumerate(distinct):
        bench = Bench(load, dtype, device, updates, [Contestant("rlhf", "stages.bench.ours")])
        result = bench.run(
            lambda done, total, number=number: progress(number * total + done, len(distinct) * total)  # type: ignore[misc]
        )
        ceilings = {name: result[name] for name in ("ceiling_gflops", "copy_gigabytes")}
        found.append(result)
    sweeps = {}
    for name, wanted in values.items():
        points = [_point(found[distinct.index({**base, name: value})], value) for value in wanted]
        axis = "operations" if name == "size" else "tokens"
        fit = Fit.through([point[axis] for point in points], [point["seconds"] for point in points])
        sweeps[name] = {"points": points, "fit": vars(fit), "axis": axis}
    return {**ceilings, "sweeps": sweeps, "load": {**base, "dtype": dtype, "device": device}, "updates": updates}


def _point(result: Mapping[str, Any], value: Any) -> dict[str, Any]:
    seconds = result["seconds_per_update"]
    return {
        "value": value,
        "tokens": round(result["tokens_per_second"] * seconds),
        "operations": result["mfu"] * seconds * result["ceiling_gflops"] * 1e9,
        "seconds": seconds,
        "phases": result["phases"],
        "peak_memory_bytes": result["peak_memory_bytes"],
        "mfu": result["mfu"],
    }
