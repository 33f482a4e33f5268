"""Where figures go besides metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import field_validator

from rlhf.config.sections import Address, NonNegativeFloat, Section


class WandbConfig(Section):
    """Weights & Biases."""

    project: str = "rlhf"
    entity: str | None = None  # user or team; null: W&B's own default
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with WANDB_API_KEY, else offline
    models: bool = False  # upload models; without, artifacts refer to where they lie


class MlflowConfig(Section):
    """MLflow."""

    uri: Annotated[str, Address("MLFLOW_TRACKING_TOKEN")]  # http://..., or a directory
    experiment: str = "rlhf"

    @field_validator("uri")
    @classmethod
    def _usable_and_without_secret(cls, uri: str) -> str:
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise ValueError("is no address; use http://HOST:PORT or a directory") from None
        if parts.scheme and "@" in parts.netloc:
            raise ValueError(
                "holds a user name or a password; leave them out and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
            )
        if not uri or (parts.scheme and parts.scheme not in ("http", "https", "file")):
            raise ValueError(f"{uri!r} is of no known kind; use http://HOST:PORT, https://HOST or a directory")
        return uri

    @property
    def is_server(self) -> bool:
        """Whether it is a server and not a directory."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def address(self) -> str:
        """The URI as mlflow takes it; a directory is one of the working folder."""
        if self.is_server or self.uri.startswith("file:"):
            return self.uri
        return Path(self.uri).resolve().as_uri()


class TrackingConfig(Section):
    """Where figures go besides metrics.jsonl."""

    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = False  # event files in STAGE/tensorboard
    mlflow: MlflowConfig | None = None
    close_seconds: NonNegativeFloat = 10.0  # how long a stage's end may wait for servers; `rlhf sync` sends the rest
