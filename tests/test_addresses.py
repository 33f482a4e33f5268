"""Which texts of a recipe may be addresses, and what of the environment holds the secret of each instead."""

from __future__ import annotations

import pytest
from running import TINY

from rlhf.config import Recipe
from rlhf.config.sections import Address
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from rlhf.schema import sections_of

VARIABLES = {
    "CheckConfig.words": "HF_TOKEN",
    "ClassifierConfig.path": "HF_TOKEN",
    "DataConfig.directory": "HF_TOKEN",
    "EvaluateConfig.gold": "RLHF_REWARD_TOKEN",
    "EvaluateConfig.second_gold": "RLHF_REWARD_TOKEN",
    "HeldOutConfig.judge": "RLHF_REWARD_TOKEN",
    "JudgeConfig.rubric_file": "HF_TOKEN",
    "JudgeConfig.url": "RLHF_JUDGE_TOKEN",
    "MlflowConfig.uri": "MLFLOW_TRACKING_TOKEN",
    "ModelConfig.path": "HF_TOKEN",
    "ParallelismConfig.deepspeed": "HF_TOKEN",
    "RewardConfig.start": "HF_TOKEN",
    "RewardConfig.use": "RLHF_REWARD_TOKEN",
    "RewardTermConfig.use": "RLHF_REWARD_TOKEN",
    "SftConfig.use": "HF_TOKEN",
    "SourceConfig.labeller": "RLHF_REWARD_TOKEN",
    "SourceConfig.path": "HF_TOKEN",
}
PROSE = {
    "JudgeConfig.model",
    "JudgeConfig.request",
    "JudgeConfig.rubric",
    "MlflowConfig.experiment",
    "ModelConfig.revision",
    "Recipe.name",
    "SourceConfig.prompt",
    "WandbConfig.entity",
    "WandbConfig.project",
}


def test_each_text_may_be_an_address_or_is_prose() -> None:
    found: dict[str, str | None] = {}
    for section in sections_of(Recipe):
        for name, info in section.model_fields.items():
            if info.annotation in (str, str | None):
                marks = [mark.variable for mark in info.metadata if isinstance(mark, Address)]
                found[f"{section.__name__}.{name}"] = marks[0] if marks else None
    assert found == VARIABLES | dict.fromkeys(PROSE)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sft.use=HTTPS://me:hunter2@hub/name", "sft.use=HTTPS://...@hub/name: holds a name or password, .* HF_TOKEN "),
        ("reward.use='http://me:hunter2?w@host/x'", "reward.use=http://...@host/x: .* RLHF_REWARD_TOKEN in"),
        ("reward.start=https://me:hunter2/w@hub/name", "reward.start=https://...@hub/name: .* HF_TOKEN in"),
        (
            "labelling.judge.url=' http://h/v1?key=hunter2'",
            "labelling.judge.url=http://h/v1.key=.* RLHF_JUDGE_TOKEN in",
        ),
        ("tracking.mlflow={uri: 'http://me:hunter2/w@host'}", "tracking.mlflow.uri=.* MLFLOW_TRACKING_TOKEN in"),
        ("data.check.words=https://host/words?token=hunter2", "data.check.words=.* HF_TOKEN in"),
        ("ppo.generation.server.addresses=['http://me:hunter2@host:1']", "addresses.* RLHF_GENERATION_TOKEN"),
    ],
)
def test_the_variable_is_that_of_the_field(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        load_recipe(TINY, [setting])
    assert len(raised.value.problems) == 1 and "hunter2" not in str(raised.value)


def test_prose_may_begin_with_any_address() -> None:
    text = "https://host/constitution?token=all says what is better"
    recipe = load_recipe(
        TINY, [f"labelling.judge.rubric={text!r}", f"data.demonstrations=[{{path: a, prompt: {text!r}}}]"]
    )
    assert recipe.labelling.judge.rubric == recipe.data.demonstrations[0].prompt == text
