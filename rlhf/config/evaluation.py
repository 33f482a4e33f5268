"""The comparison of the aligned policy with the policy it started from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlhf.config.sections import Address, AffectsNothing, PositiveInt, Section
from rlhf.config.training import ParallelismConfig


class LmEvalConfig(Section):
    """Tasks of lm-eval (EleutherAI's language model evaluation harness), to show what alignment cost elsewhere."""

    tasks: Annotated[list[str], Field(min_length=1)]  # names, files (*.yaml), or directories of them (DIRECTORY/)
    limit: PositiveInt | None = None  # examples of each task; null: all
    few_shot: Annotated[int, Field(ge=0)] | None = None  # null: as each task says
    batch_size: PositiveInt = 16


class EvaluateConfig(Section):
    """The comparison of the aligned policy with the SFT model on held-out prompts."""

    prompts: PositiveInt = 256  # responses from each policy; prompts repeat if fewer are held out
    # package.module:function in [0, 1], never seen by a stage; null: the reward model.
    gold: Annotated[str | None, Address("RLHF_REWARD_TOKEN")] = None
    second_gold: Annotated[str | None, Address("RLHF_REWARD_TOKEN")] = None  # another one, reported beside it
    # Also the SFT model's best of n responses by the reward, n = 1, 2, 4, ... up to this: what the reward buys without
    # training, and at which KL. null: not measured.
    best_of: Annotated[int, Field(ge=2, le=1024)] | None = None
    lm_eval: LmEvalConfig | None = None
    parallelism: Annotated[ParallelismConfig | None, AffectsNothing] = None
