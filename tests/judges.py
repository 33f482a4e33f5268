"""A judge of no sense, but always of the same: which policy it finds the best is chance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHANCE = """
from zlib import crc32
def score(prompts, responses):
    return [crc32(f"1 {pair}".encode()) % 1000 / 1000 for pair in zip(prompts, responses)]
"""


def judged_by_chance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Have stages find it in a folder; the settings that ask it of each step."""
    (folder / "chance.py").write_text(CHANCE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return "ppo.held_out.judge=chance:score", "ppo.evaluate_every=1"
