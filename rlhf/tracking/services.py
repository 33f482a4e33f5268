"""The trackers besides metrics.jsonl, as whoever feeds them sees them."""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rlhf.config import Recipe, TrackingConfig, WandbConfig
from rlhf.errors import ConfigError
from rlhf.store.artifact import write_text
from rlhf.tracking.entries import Entry

IDENTIFIED = ("wandb", "mlflow")  # services that keep runs by an id
SENT = "sent"  # STAGE/SERVICE/sent: how much of the stage's files a service has taken for certain


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be sent where."""

    directory: str  # the stage's
    stage: str
    recipe: Mapping[str, Any]  # resolved
    tracking: Mapping[str, Any]  # the services wanted: {"wandb": {...}, "tensorboard": True, "mlflow": {...}}
    inputs: Mapping[str, str] = field(default_factory=dict)  # directories of the stages it starts from
    ids: Mapping[str, str] = field(default_factory=dict)  # by service, under which it knows the stage
    process: int = 0  # whose use of the machine is recorded
    seconds: float = 10.0  # to wait for servers at the end
    patience: float = 5.0  # of these, for the first answer of a server

    @classmethod
    def parse(cls, text: str) -> Job:
        """From JSON."""
        return cls(**json.loads(text))

    def dump(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.recipe["name"])

    def folder(self, service: str) -> Path:
        """Where a service keeps what it has to remember."""
        return Path(self.directory) / service


class Service(Protocol):
    """One tracker. All methods may block for as long as a server likes; an exception means: open it again, later."""

    name: str
    remote: bool  # it needs a server, which may be away

    def open(self) -> None:
        """Start, or go on with what is there."""
        ...

    def send(self, entries: Sequence[Entry]) -> None:
        """Hand over entries, all from the first one on after each `open`; what is there already is not sent twice."""
        ...

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Hand over the stage's manifest, None if it is not complete, and wait until all has arrived."""
        ...


def wanted(recipe: Recipe) -> dict[str, Any]:
    """The services that a recipe asks for, with their settings; whether W&B is online is settled here."""
    tracking = recipe.tracking
    services: dict[str, Any] = {}
    if (mode := settled_mode(tracking.wandb)) != "disabled":
        services["wandb"] = {**tracking.wandb.model_dump(), "mode": mode}
    if tracking.tensorboard:
        services["tensorboard"] = True
    if tracking.mlflow is not None:
        services["mlflow"] = {**tracking.mlflow.model_dump(), "uri": tracking.mlflow.address}
    return services


def settled_mode(config: WandbConfig) -> Literal["online", "offline", "disabled"]:
    """`auto` is online where the environment has a key, and offline elsewhere."""
    if config.mode == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return config.mode


def services_of(job: Job) -> list[Service]:
    """The services that a job asks for."""
    services: list[Service] = []
    if job.tracking.get("wandb"):
        from rlhf.tracking.wandb import WandbService

        services.append(WandbService(job))
    if job.tracking.get("tensorboard"):
        from rlhf.tracking.tensorboard import TensorboardService

        services.append(TensorboardService(job))
    if job.tracking.get("mlflow"):
        from rlhf.tracking.mlflow import MlflowService

        services.append(MlflowService(job))
    return services


def require_packages(tracking: TrackingConfig) -> None:
    """Raise ConfigError where the package of a tracker is missing that a recipe asks for."""
    wanted = {
        "wandb": ("wandb", tracking.wandb.mode != "disabled"),
        "tensorboard": ("tensorboard", tracking.tensorboard),
        "mlflow": ("mlflow-skinny", tracking.mlflow is not None),
    }
    extras = {"wandb": ".", "tensorboard": ".[tensorboard]", "mlflow": ".[mlflow]"}  # W&B comes with the rest
    missing = [
        f"tracking.{name}: the package {package} is missing; in the clone: pip install -c constraints.txt -e "
        f"'{extras[name]}', or turn it off"
        for name, (package, on) in wanted.items()
        if on and importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(*missing)


def remembered_ids(directory: Path, services: Iterable[str], resumed: bool) -> dict[str, str]:
    """The ids under which services know a stage, kept in their folders; made up where it is a new one."""
    paths = {service: directory / service / "id" for service in services if service in IDENTIFIED}
    for path in paths.values():
        if not (resumed and path.is_file()):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, uuid.uuid4().hex[:8])
    return {service: path.read_text(encoding="utf-8") for service, path in paths.items()}


def forget_sent(job: Job, service: str) -> None:
    """More is to come than what was noted as sent."""
    (job.folder(service) / SENT).unlink(missing_ok=True)


def note_sent(job: Job, service: str, place: str) -> None:
    """Note that a service has everything that now stands in the stage's files; place: which server or file."""
    write_text(job.folder(service) / SENT, json.dumps({"place": place, **_extent(Path(job.directory))}) + "\n")


def sent_to(directory: Path, service: str) -> str | None:
    """The place that has everything that stands in a stage's files; None if there is none."""
    path = directory / service / SENT
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    place: str = note.pop("place", "")
    return place if note == _extent(directory) else None


def _extent(directory: Path) -> dict[str, Any]:
    metrics = directory / "metrics.jsonl"
    return {
        "bytes": metrics.stat().st_size if metrics.is_file() else 0,
        "tables": len(list((directory / "samples").glob("[!.]*.parquet"))),
    }
