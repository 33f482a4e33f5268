"""Where figures go besides metrics.jsonl."""

from __future__ import annotations

from typing import Literal

from rlhf.config.sections import Section


class WandbConfig(Section):
    """Weights & Biases."""

    project: str = "rlhf"
    entity: str | None = None  # user or team; null: W&B's own default
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with WANDB_API_KEY, else offline
    models: bool = False  # upload models; without, artifacts refer to where they lie


class MlflowConfig(Section):
    """MLflow."""

    uri: str  # http://..., or a directory
    experiment: str = "rlhf"


class TrackingConfig(Section):
    """Where figures go besides metrics.jsonl."""

    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = False  # event files in STAGE/tensorboard
    mlflow: MlflowConfig | None = None
