"""Figures as lines of JSON, samples as parquet, beside the model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.store.samples import write_samples


class JsonlTracker:
    """Writes `metrics.jsonl` and `samples/NAME-STEP.parquet`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = (directory / "metrics.jsonl").open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line; readable at once by whoever follows the file."""
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n")
        self.file.flush()

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """One parquet file."""
        write_samples(self.directory / "samples" / f"{name}-{step:06d}.parquet", rows)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
