"""A run's figures by step, as its stages write them to STAGE/metrics.jsonl, also while they do. Loads no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import ArtifactError
from rlhf.store.artifact import PARTIAL, find_artifact

METRICS = "metrics.jsonl"
STAGES = ("sft", "reward", "ppo", "evaluate")


@dataclass(frozen=True)
class Figures:
    """What one stage measured."""

    by_step: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # metric key -> step -> value, nan a gap
    results: Mapping[str, Any] = field(default_factory=dict)  # of its manifest; empty until it is complete

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps in order and their values; empty where nothing was logged under a key."""
        values = self.by_step.get(key, {})
        steps = sorted(values)
        return steps, [values[step] for step in steps]


def read_run(run: Path) -> dict[str, Figures]:
    """The figures of each stage of a run that has any.

    Left out are results of a stage whose input has changed since: they are of another policy or reward model. Raises
    ArtifactError where there is nothing to read, or a line that no stage wrote.
    """
    if not run.is_dir():
        raise ArtifactError(f"{run}: no such directory; give a run directory, or a name under runs/")
    found = {}
    for stage in STAGES:
        path = run / stage / METRICS
        if path.is_file() and not is_outdated(run, stage) and (by_step := read_metrics(path)):
            artifact = find_artifact(run / stage)
            found[stage] = Figures(by_step, artifact.results if artifact else {})
    if not found:
        raise ArtifactError(
            f"{run}: no figures yet; they appear in {run / 'STAGE' / METRICS} with a stage's first step"
        )
    return found


def is_outdated(run: Path, stage: str) -> bool:
    """Whether a complete stage was made from an input that has been made anew, or is being made anew."""
    artifact = find_artifact(run / stage)
    for name, fingerprint in (artifact.manifest.get("inputs", {}) if artifact else {}).items():
        source = find_artifact(run / name)
        if (run / name / PARTIAL).exists() or (source is not None and source.fingerprint != fingerprint):
            return True
    return False


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Metric key -> step -> value. Of a step that stands there twice the later line counts.

    The end of the file may be half a line, while a stage is writing it. Raises ArtifactError for any other bad line.
    """
    by_step: dict[str, dict[int, float]] = {}
    lines = path.read_bytes().split(b"\n")[:-1]  # what stands behind the last line break is not complete
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            remedy = "remove the line, or run the stage again"
            raise ArtifactError(f"{path}, line {number}: no figures of a step ({error!r}); {remedy}") from error
        for key, value in record.items():
            if key not in ("step", "time") and (value is None or isinstance(value, int | float)):
                by_step.setdefault(key, {})[step] = math.nan if value is None else float(value)
    return by_step
