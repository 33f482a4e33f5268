import json
import math
from pathlib import Path

import pytest
from running import TINY, stage

from stages.best_of import figures


def test_more_responses_never_lower_the_best_score(tiny_run: Path, tmp_path: Path) -> None:
    output = stage("evaluate", TINY, tiny_run, tmp_path / "evaluate", ["evaluate.best_of=5"])
    found = json.loads((output / "manifest.json").read_text())["results"]["best_of"]
    assert [best["n"] for best in found] == [1, 2, 4]  # powers of two up to 5
    assert [best["kl"] for best in found] == pytest.approx([0, math.log(2) - 1 / 2, math.log(4) - 3 / 4])
    scores = [best["score"] for best in found]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    for best in found:
        assert 0 <= best["gold_ci"][0] <= best["gold"] <= best["gold_ci"][1] <= 1
        assert 0 <= best["win_rate_ci"][0] <= best["win_rate"] <= best["win_rate_ci"][1] <= 1


def test_figures_are_means_over_prompts_of_means_over_their_groups() -> None:
    """Two prompts with two chosen responses each: rows 0 and 1 answer the first, 2 and 3 the second."""
    golds, scores, before = [0.0, 1.0, 0.5, 0.5], [1.0, 2.0, 3.0, 4.0], [0.5, 0.5]
    found = figures(2, [0, 1, 2, 3], 2, scores, golds, before, seed=0)
    assert found["gold"] == pytest.approx(0.5) and found["score"] == pytest.approx(2.5)
    assert found["win_rate"] == pytest.approx(0.5)  # lost, won; tied, tied
    best = figures(4, [1, 3], 2, scores, golds, before, seed=0)
    assert best["gold"] == pytest.approx(0.75) and best["win_rate"] == pytest.approx(0.75)
    assert best["score"] == pytest.approx(3.0)
