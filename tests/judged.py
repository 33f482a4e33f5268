"""The judge's command called in a test's process, pairs for it, and the votes that it writes."""

from __future__ import annotations

import json
from typing import Any

from labelled import write
from typer.testing import CliRunner

from data.locations import files_of
from data.reading import Reading
from launch.cli import app
from rlhf.config import SourceConfig
from rlhf.errors import RLHFError
from rlhf.types import Comparison


def pairs(count: int) -> str:
    """Pairs of which the second response is longer."""
    return write(
        "pairs.jsonl", *({"prompt": f"p {n} ?", "responses": ["x" * (n + 1), "yy" * (n + 1)]} for n in range(count))
    )


def judge(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of the command, called in this process."""
    result = CliRunner().invoke(app, ["label", "judge", "--model", "m", "--json", *arguments])
    if isinstance(result.exception, RLHFError):
        raise result.exception
    return result.exit_code, json.loads(result.stdout)


def votes(path: str = "judged.jsonl") -> list[Comparison]:
    return list(Reading(SourceConfig(path=path), files_of(path, None), "comparisons"))  # type: ignore[arg-type]
