import json
import math
from pathlib import Path

import pytest
from running import TINY, stage

from rlhf.recipe import load_recipe
from rlhf.types import Prompt
from stages.best_of import figures
from stages.evaluate import compared, trained_on


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
    prompts = [Prompt("first"), Prompt("second")]
    found = figures(2, [0, 1, 2, 3], prompts, scores, golds, before, seed=0)
    assert found["gold"] == pytest.approx(0.5) and found["score"] == pytest.approx(2.5)
    assert found["win_rate"] == pytest.approx(0.5)  # lost, won; tied, tied
    best = figures(4, [1, 3], prompts, scores, golds, before, seed=0)
    assert best["gold"] == pytest.approx(0.75) and best["win_rate"] == pytest.approx(0.75)
    assert best["score"] == pytest.approx(3.0)


def test_prompts_that_repeat_are_one_unit() -> None:
    """Each prompt four times: the interval is that of the prompts, not half as wide."""
    golds = [float(i % 2) for i in range(40)]
    once = figures(1, list(range(40)), [Prompt(str(i)) for i in range(40)], golds, golds, [0.5] * 40, seed=0)
    four = [Prompt(str(i % 40)) for i in range(160)]
    often = figures(1, list(range(160)), four, golds * 4, golds * 4, [0.5] * 160, seed=0)
    assert often["gold_ci"] == pytest.approx(once["gold_ci"]) and often["gold"] == once["gold"]


def test_the_evaluation_too_takes_a_prompt_for_one_unit() -> None:
    prompts = [Prompt(str(i)) for i in range(40)]
    before, after = [0.5] * 40, [float(i % 3 > 0) for i in range(40)]
    once = compared("judged", before, after, prompts, 0)
    often = compared("judged", before * 4, after * 4, prompts * 4, 0)
    assert set(once) == {"judged_before", "judged_after", "judged_gain_ci", "win_rate", "win_rate_ci"}
    assert all(often[key] == pytest.approx(value) for key, value in once.items())


def test_a_judge_that_ppo_was_trained_on_is_known() -> None:
    recipe = load_recipe(TINY, ["reward.use=mine:score", "ppo.rewards=[{use: mine:polite}]"])
    assert trained_on(recipe) == ["mine:score", "mine:polite"]
