"""Send afterwards what trackers did not get while a stage ran: what `rlhf sync` does, for one stage.

Nothing is sent twice: each service is asked what it has, or notes that it has everything (`STAGE/SERVICE/sent`). Loads
no library of a service: these run as child processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config import Recipe
from rlhf.store.artifact import find_artifact
from rlhf.tracking.background import end_sender, start_sender
from rlhf.tracking.public import public
from rlhf.tracking.services import Job, note_sent, remembered_ids, require_packages, sent_to, wanted

NO_KEY = "needs a key"


def has_key() -> bool:
    """Whether W&B would find a key: in the environment, or where `wandb login` leaves it."""
    kept = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return bool(os.environ.get("WANDB_API_KEY")) or kept.is_file() or kept.with_name("_netrc").is_file()


@dataclass(frozen=True)
class Outcome:
    """How a service fared."""

    service: str
    problem: str | None  # None: it has everything
    sent: bool = True  # False: it had everything before


def sync_stage(recipe: Recipe, directory: Path, stage: str, seconds: float) -> Iterator[Outcome]:
    """Send what is missing to each tracker of a recipe; seconds: how long to wait for each."""
    require_packages(recipe.tracking)
    tracking = wanted(recipe)
    artifact = find_artifact(directory)
    manifest = artifact.manifest if artifact else None
    job = Job(
        directory=str(directory.resolve()),
        stage=stage,
        recipe=recipe.model_dump(),
        tracking={},
        inputs={name: str((directory.parent / name).resolve()) for name in (manifest or {}).get("inputs", {})},
        ids=remembered_ids(directory, tracking, resumed=True),
        seconds=seconds,
        patience=seconds,
    )
    places = {"tensorboard": "offline", "mlflow": tracking.get("mlflow", {}).get("uri")}
    for service, settings in tracking.items():
        if service == "wandb":
            yield _sync_wandb(replace(job, tracking={"wandb": settings}), manifest)
        elif sent_to(directory, service) == places[service]:
            yield Outcome(service, None, sent=False)
        else:
            yield _send(replace(job, tracking={service: settings}), manifest)


def _send(job: Job, manifest: Any) -> Outcome:
    """Have a process read the stage's files from the beginning, as it does while a stage runs."""
    (service,) = job.tracking
    problems = end_sender(start_sender(job), manifest, job.seconds)["problems"]
    return Outcome(service, next(iter(problems.values()), None))


def _sync_wandb(job: Job, manifest: Any) -> Outcome:
    """Online runs are gone on with; offline ones are completed and uploaded by W&B, with the use of the machine."""
    directory, settings = Path(job.directory), job.tracking["wandb"]
    place = sent_to(directory, "wandb")
    if place == "online":
        return Outcome("wandb", None, sent=False)
    if not has_key():
        return Outcome("wandb", NO_KEY)
    offline = place == "offline" or any(_offline_runs(directory))
    if not offline:
        return _send(replace(job, tracking={"wandb": {**settings, "mode": "online"}}), manifest)
    if place is None:
        written = _send(replace(job, tracking={"wandb": {**settings, "mode": "offline"}}), manifest)
        if written.problem:
            return written
    for run in _offline_runs(directory):
        if problem := _upload(run, settings, job.seconds):
            return Outcome("wandb", problem)
    note_sent(job, "wandb", "online")
    return Outcome("wandb", None)


def _offline_runs(directory: Path) -> Sequence[Path]:
    return sorted((directory / "wandb").glob("offline-run-*"))


def _upload(run: Path, settings: Any, seconds: float) -> str | None:
    """`wandb sync`; why it failed, or None. It marks what it has uploaded, and passes by what is marked."""
    chosen = ["--project", settings["project"], *(["--entity", settings["entity"]] if settings["entity"] else [])]
    command = [sys.executable, "-P", "-m", "wandb", "sync", *chosen, str(run)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return f"not uploaded within {seconds:g} s"
    if any(run.glob("*.wandb.synced")):
        return None
    said = [line for line in done.stdout.splitlines() if line.strip()]
    return said[-1].removeprefix("wandb: ").strip() if said else f"wandb sync ended with code {done.returncode}"


def destination(service: str, recipe: Recipe, directory: Path) -> str:
    """Where a tracker's figures go, a server or a directory, without what gives access to it."""
    if service == "tensorboard":
        return str(directory / service)
    if service == "wandb":
        address = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai, if `wandb login` chose no other"
    else:
        address = recipe.tracking.mlflow.address if recipe.tracking.mlflow else ""
    return str(public(address.partition("?")[0]))
