"""What a stage warns of when its figures say that little was learned, and that the summary repeats it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from running import TINY, stage

from launch.summary import rows
from rlhf.analysis.doubts import doubt_of_reward, doubt_of_sft


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.037, 0.216), "prefers what people rejected: .* 0.037 to 0.216; are chosen and rejected swapped"),
        ((0.41, 0.59), "no better than chance: .* give more votes, or raise reward.epochs or reward.learning_rate"),
        ((0.5, 0.7), "no better than chance"),
        ((0.501, 0.7), None),
    ],
)
def test_an_accuracy_that_chance_explains_is_said(interval: tuple[float, float], said: str | None) -> None:
    doubt = doubt_of_reward({"accuracy_ci": interval})
    assert doubt is None if said is None else doubt is not None
    if said:
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(doubt)


def test_of_a_reward_of_ones_own_another_remedy_is_said() -> None:
    assert "sign of reward.use" in (doubt_of_reward({"use": "x:y", "accuracy_ci": (0.1, 0.2)}) or "")
    assert "another reward.use" in (doubt_of_reward({"use": "x:y", "accuracy_ci": (0.4, 0.6)}) or "")


@pytest.mark.parametrize(("share", "said"), [(1.02, True), (0.85, True), (0.849, False)])
def test_a_loss_near_that_of_guessing_is_said(share: float, said: bool) -> None:
    uniform = math.log(50_257)
    doubt = doubt_of_sft({"eval_loss": share * uniform, "uniform_loss": uniform})
    assert (doubt is not None) is said


def test_without_figures_there_is_no_doubt() -> None:
    assert doubt_of_sft({}) is None
    assert doubt_of_reward({"use": "x:y"}) is None


def test_the_summary_repeats_doubts_and_names_judges() -> None:
    sft, reward = {"eval_loss": 5.7, "uniform_loss": 5.77}, {"accuracy": 0.093, "accuracy_ci": (0.037, 0.216)}
    ppo = {"judge": "reward model", "judge_trained_on": True, "judged_before": 0.1, "judged_after": 0.4, "kl": 1.0}
    ppo |= {"win_rate": 0.7, "win_rate_ci": (0.6, 0.8), "held_out_judge": "mine:good"}
    ppo |= {"best_step": 2, "best_score": 0.5, "last_score": 0.4}
    table = {figure: value for _, figure, value in rows({"sft": sft, "reward": reward, "ppo": ppo})}
    assert "guessing gives 5.770" in table["warning: hardly learned"]
    assert "swapped" in table["warning: prefers what people rejected"]
    assert table["reward model"] == "0.100 -> 0.400"
    assert table["best held-out score by mine:good, and the last"] == "0.500 after step 2, 0.400"
    assert "win rate against SFT, by the reward PPO was trained on" in table
    gold = ppo | {"judge": "data.toy:gold", "judge_trained_on": False, "gold_before": 0.2, "gold_after": 0.3}
    table = {figure: value for _, figure, value in rows({"ppo": gold})}
    assert table["data.toy:gold"] == "0.200 -> 0.300" and "win rate against SFT" in table


def test_stages_say_it_where_nothing_was_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a learning rate a model guesses, and so does its reward model."""
    still = ["sft.learning_rate=0", "reward.learning_rate=0"]
    still += [f"data.{kind}.0.{key}=32" for kind in ("demonstrations", "comparisons") for key in ("count", "held_out")]
    stage("sft", TINY, tmp_path, tmp_path / "sft", still)
    assert "sft: warning: hardly learned" in capsys.readouterr().err
    stage("reward", TINY, tmp_path, tmp_path / "reward", still)
    said = capsys.readouterr().err
    assert "reward: warning: no better than chance" in said or "reward: warning: prefers what" in said
