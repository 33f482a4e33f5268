"""The recipe: every setting of a run, strict and frozen. Reading one from a file: `rlhf.recipe.load_recipe`.

A field marked with `AffectsNothing` (where and how fast, not what) stays out of a stage's fingerprint: changing it
never makes a finished stage run again.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, model_validator

from rlhf.config.checking import AgreementLimitsConfig, CheckConfig, ClassifierConfig, LimitsConfig
from rlhf.config.data import DataConfig, FormatName, PreferenceFormat, PromptFormat, SourceConfig
from rlhf.config.evaluation import EvaluateConfig, LmEvalConfig
from rlhf.config.labelling import JudgeConfig, LabellingConfig
from rlhf.config.model import InitConfig, LoraConfig, ModelConfig
from rlhf.config.ppo import PpoConfig
from rlhf.config.rollout import (
    FaultsConfig,
    GenerationConfig,
    GenerationServerConfig,
    HeldOutConfig,
    KlConfig,
    OverlongConfig,
    RewardTermConfig,
)
from rlhf.config.sections import AffectsNothing, Section
from rlhf.config.tracking import MlflowConfig, TrackingConfig, WandbConfig
from rlhf.config.training import (
    CheckpointConfig,
    ParallelismConfig,
    RewardConfig,
    RewardServerConfig,
    SftConfig,
    StageConfig,
    WatchdogConfig,
)

__all__ = [
    "AffectsNothing",
    "AgreementLimitsConfig",
    "CheckConfig",
    "CheckpointConfig",
    "ClassifierConfig",
    "DataConfig",
    "EvaluateConfig",
    "FaultsConfig",
    "FormatName",
    "GenerationConfig",
    "GenerationServerConfig",
    "HeldOutConfig",
    "InitConfig",
    "JudgeConfig",
    "KlConfig",
    "LabellingConfig",
    "LimitsConfig",
    "LmEvalConfig",
    "LoraConfig",
    "MlflowConfig",
    "ModelConfig",
    "OverlongConfig",
    "ParallelismConfig",
    "PpoConfig",
    "PreferenceFormat",
    "PromptFormat",
    "Recipe",
    "RewardConfig",
    "RewardServerConfig",
    "RewardTermConfig",
    "Section",
    "SftConfig",
    "SourceConfig",
    "StageConfig",
    "TrackingConfig",
    "WandbConfig",
    "WatchdogConfig",
]


NAME: dict[str, JsonValue] = {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$"}


def _directory_name(name: str) -> str:
    if not re.fullmatch(str(NAME["pattern"]), name):
        raise ValueError(
            f"{name!r} is to be a directory's name: use letters, digits, dots, dashes and underscores, and begin with "
            "a letter or a digit"
        )
    return name


class Recipe(Section):
    """One run, complete."""

    name: Annotated[str, AfterValidator(_directory_name), Field(json_schema_extra=NAME), AffectsNothing] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PpoConfig = PpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: Annotated[CheckpointConfig, AffectsNothing] = CheckpointConfig()
    tracking: Annotated[TrackingConfig, AffectsNothing] = TrackingConfig()
    parallelism: Annotated[ParallelismConfig, AffectsNothing] = ParallelismConfig()
    watchdog: Annotated[WatchdogConfig | None, AffectsNothing] = WatchdogConfig()
    labelling: Annotated[LabellingConfig, AffectsNothing] = LabellingConfig()

    def parallelism_of(self, stage: str) -> ParallelismConfig:
        """A stage's own parallelism, or the recipe's."""
        own: ParallelismConfig | None = getattr(self, stage).parallelism
        return own or self.parallelism

    @model_validator(mode="after")
    def _offloaded_once(self) -> Recipe:
        offload, parallelism = self.ppo.offload, self.parallelism_of("ppo")
        given = f"ppo.offload=[{', '.join(offload)}]"
        if "reference" in offload and self.model.lora:
            raise ValueError(
                f"{given} with model.lora: the reference is the policy without its adapters, and stays; leave reference"
                " out"
            )
        if "optimizer" in offload and parallelism.stage:
            raise ValueError(
                f"{given} with strategy={parallelism.strategy}: the optimizer is DeepSpeed's; use cpu_offload=true, "
                "and leave optimizer out"
            )
        if offload and parallelism.cpu_offload and parallelism.strategy in ("fsdp", "zero3"):
            raise ValueError(f"{given} with cpu_offload=true, which offloads all of it already; leave one of them out")
        return self

    @model_validator(mode="after")
    def _best_is_kept(self) -> Recipe:
        if self.ppo.hand_on == "best" and not self.checkpoint.keep_best:
            raise ValueError(
                "ppo.hand_on=best with checkpoint.keep_best=false: the best policy would be gone at the end; use "
                "keep_best=true or hand_on=last"
            )
        return self
