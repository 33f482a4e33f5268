"""Votes on chosen pairs against votes on random ones, three seeds: `make soak ARGS="-k chosen -s"`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
from chosen import BUDGETS, measured, share_needed

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]


def test_votes_by_margin_teach_no_less_than_random_ones(tmp_path: Path) -> None:
    every = measured(tmp_path, (1, 2, 3), at_once=2)
    for found in every:
        for by, points in found.items():
            assert [point.labels for point in points] == list(BUDGETS)
            print(by, " ".join(f"{point.accuracy:.3f}" for point in points))
            assert points[-1].low > points[0].accuracy  # votes teach
    print("margin reaches random's last with " + ", ".join(f"{share_needed(found):.0%}" for found in every))
    # Behind the first votes, which are the same; over seeds and budgets, of which each alone is noise.
    random, margin = (fmean(p.accuracy for found in every for p in found[by][1:]) for by in ("random", "margin"))
    assert margin > random - 0.01
