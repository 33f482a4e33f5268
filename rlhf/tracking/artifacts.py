"""What a stage reads and hands on, as W&B artifacts: data -> SFT -> reward -> PPO -> evaluate.

An artifact is the same version wherever its files have the same checksums, so a stage names its inputs by building them
again from their manifests: no server is asked, and offline it works too. Files are referred to where they lie, by
`file://` and the SHA-256 of our manifests, unless they are to be uploaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
from wandb.sdk.lib.paths import LogicalPath

from rlhf.store.artifact import MANIFEST
from rlhf.tracking.public import public
from rlhf.tracking.services import Job

KINDS = ("demonstrations", "comparisons", "prompts")


def log_lineage(run: Any, job: Job, manifest: Mapping[str, Any], upload: bool) -> None:
    """Name what the stage read as inputs of a W&B run, and what it made as its output."""
    for artifact in inputs_of(job, manifest, upload):
        # `use_artifact` refuses to work offline; this is what it does with an artifact that has no version yet.
        run._log_artifact(artifact, aliases=["latest"], is_user_created=True, use_after_commit=True)
    made = stage_artifact(job.name, Path(job.directory), manifest, upload)
    run.log_artifact(made, aliases=["latest", str(manifest["fingerprint"])[:12]])


def inputs_of(job: Job, manifest: Mapping[str, Any], upload: bool) -> list[wandb.Artifact]:
    """The data sets and the stages that a stage was made from."""
    artifacts = [data_artifact(job, kind, digest) for kind, digest in manifest["data"].items() if kind in KINDS]
    for directory in map(Path, job.inputs.values()):
        path = directory / MANIFEST
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            artifacts.append(stage_artifact(job.name, directory, content, upload))
    return artifacts


def data_artifact(job: Job, kind: str, digest: str) -> wandb.Artifact:
    """One kind of examples: its sources, and the hash of what was read from them."""
    sources: Sequence[Any] = public(job.recipe["data"][kind])
    artifact = wandb.Artifact(f"{job.name}-{kind}", type="dataset", metadata={"sha256": digest, "sources": sources})
    for number, source in enumerate(sources):
        path = Path(job.recipe["data"].get("directory") or ".", source["path"])
        place = path.resolve().as_uri() if path.exists() else f"rlhf://{source['path']}"
        # The hash is that of all sources of the kind together; the number tells them apart.
        refer(artifact, f"{number}-{path.name or source['path']}", place, f"{digest}-{number}")
    return artifact


def stage_artifact(name: str, directory: Path, manifest: Mapping[str, Any], upload: bool) -> wandb.Artifact:
    """What a stage has made: its model where it has one, its results elsewhere."""
    files: Mapping[str, str] = manifest["checksums"]
    keys = ("stage", "fingerprint", "inputs", "data", "results", "seconds")
    artifact = wandb.Artifact(
        f"{name}-{manifest['stage']}",
        type="evaluation" if manifest["stage"] == "evaluate" else "model",
        metadata={key: manifest[key] for key in keys if key in manifest},
    )
    for path, checksum in files.items():
        if upload:
            artifact.add_file(str(directory / path), path, policy="immutable", skip_cache=True)
        else:
            refer(artifact, path, (directory / path).resolve().as_uri(), checksum)
    if not files:
        place = (directory / MANIFEST).resolve().as_uri()
        refer(artifact, MANIFEST, place, str(manifest["fingerprint"]))
    return artifact


def refer(artifact: wandb.Artifact, path: str, place: str, digest: str) -> None:
    """Add a file that stays where it is, under our digest: for its own, W&B would read all of it once more."""
    artifact.manifest.add_entry(ArtifactManifestEntry(path=LogicalPath(path), ref=place, digest=digest, size=0))
