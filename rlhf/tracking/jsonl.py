"""Figures as lines of JSON, samples as parquet, beside the model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.store.samples import write_samples


class JsonlTracker:
    """Writes `metrics.jsonl` and `samples/NAME-STEP.parquet`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = (directory / "metrics.jsonl").open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line; readable at once by whoever follows the file."""
        # JSON has no nan and no infinity, and a line that others cannot parse hides all its figures.
        figures = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3), **figures}
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """One parquet file."""
        write_samples(self.directory / "samples" / f"{name}-{step:06d}.parquet", rows)

    def result(self, manifest: Mapping[str, Any]) -> None:
        """Nothing: the manifest is a file itself."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()
