"""What a stage hands on: a directory that is complete when it holds `manifest.json`, and says where it came from.

    runs/NAME/STAGE/model/          weights (safetensors), configuration, tokenizer: what from_pretrained reads
                    adapter/        with LoRA, what was merged into it
                    best/           of PPO, the policy with the best held-out score, in the form of model/
                    manifest.json   fingerprint, inputs, data hashes, recipe, contract, results, checksums
                    metrics.jsonl   figures by step
                    samples/        responses (parquet)
                    check.json      of the reward stage, what the check of its comparisons has found
                    faults/         of PPO, batches in which something was not finite
                    hang/           of executions that the watchdog ended; see `rlhf.beacons`
                    checkpoints/    while it trains; see `rlhf.store.checkpoint`

The manifest is written last, so a stage that was killed has none. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf.errors import ArtifactError

FORMAT = 1  # raised when a stage of the same recipe would be written in another way
MANIFEST = "manifest.json"
MODELS = ("model", "adapter", "best")
CONTENTS = (
    *MODELS,
    "samples",
    "faults",
    "wandb",
    "tensorboard",
    "mlflow",
    "checkpoints",
    "hang",
    "metrics.jsonl",
    "check.json",
)  # what a stage writes besides its manifest
PARTIAL = ".partial"  # what is being written; its presence marks a stage that has not ended
PREVIOUS, INTERRUPTED = ".previous", ".interrupted"  # what stood there before; see `rlhf.store.turnover`
REMOVED = ".removed"  # what is being removed
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")


@dataclass(frozen=True)
class Lineage:
    """What determines a stage's result."""

    stage: str
    fields: Mapping[str, Any]  # the recipe's fields that affect it
    inputs: Mapping[str, str]  # fingerprints of the stages it starts from
    data: Mapping[str, str]  # content hashes of its examples

    @property
    def fingerprint(self) -> str:
        """Hash of all of it and of the artifact format: the same fingerprint, the same result."""
        return digest({"format": FORMAT, **self.__dict__})


@dataclass(frozen=True)
class Artifact:
    """A complete stage on disk."""

    directory: Path
    manifest: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The model's directory; somebody's own where the stage took that instead of training one."""
        elsewhere = self.manifest.get("refers_to")
        return Path(elsewhere["path"]) if elsewhere else self.directory / "model"

    @property
    def fingerprint(self) -> str:
        """What it was made from; see Lineage."""
        return str(self.manifest["fingerprint"])

    @property
    def results(self) -> Mapping[str, Any]:
        """The stage's figures."""
        results: Mapping[str, Any] = self.manifest["results"]
        return results


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=dict).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def find_artifact(directory: Path) -> Artifact | None:
    """The complete artifact in a directory, or None."""
    path = directory / MANIFEST
    if not path.is_file():
        return None
    remedy = "remove the directory and run the stage again"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not a manifest ({error}); {remedy}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(f"{path}: not of artifact format {FORMAT}; {remedy}")
    wanted: dict[str, type] = {"fingerprint": str, "results": dict, "checksums": dict, "environment": dict}
    for field, kind in wanted.items():
        if not isinstance(manifest.get(field), kind):
            raise ArtifactError(f"{path}: {field} is missing or damaged; {remedy}")
    return Artifact(directory, manifest)


def load_artifact(directory: Path) -> Artifact:
    """The complete artifact in a directory, its files compared with their checksums; ArtifactError otherwise."""
    artifact = find_artifact(directory)
    if artifact is None:
        raise ArtifactError(f"{directory}: no complete stage here; run `rlhf {directory.name} RECIPE` first")
    for name, checksum in artifact.manifest["checksums"].items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; run the stage again with --force")
        if file_digest(path) != checksum:
            raise ArtifactError(f"{path}: damaged (its checksum differs); run the stage again with --force")
    elsewhere = artifact.manifest.get("refers_to")
    if elsewhere and referring(Path(elsewhere["path"])) != elsewhere:
        remedy = "run `rlhf run RECIPE` again"
        raise ArtifactError(f"{elsewhere['path']}: changed or gone since {directory.name} took it in; {remedy}")
    return artifact


def referring(model: Path) -> dict[str, Any]:
    """What a manifest says of a model that lies elsewhere: its directory and the checksums of its files."""
    files = sorted(path for path in model.iterdir() if path.is_file()) if model.is_dir() else []
    return {"path": str(model.absolute()), "checksums": {path.name: file_digest(path) for path in files}}


def discard(directory: Path) -> None:
    """Remove a directory that nobody may find half removed."""
    removed = directory.with_name(REMOVED)
    remove(removed)
    if directory.exists():
        directory.replace(removed)
        remove(removed)


def remove(path: Path) -> None:
    """Remove a file or a directory that may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_directory(source: Path, target: Path) -> None:
    """Give a directory a second name: its files linked, so that they take no room, or copied where that cannot be."""

    def link(file: str, name: str) -> None:
        try:
            os.link(file, name)
        except OSError:  # a file system without links
            shutil.copyfile(file, name)

    shutil.copytree(source, target, copy_function=link)


def publish(
    directory: Path,
    lineage: Lineage,
    record: Mapping[str, Any],
    tell: Callable[[Mapping[str, Any]], None] = lambda manifest: None,
) -> Artifact:
    """Move a stage's model into place, tell of it, then write the manifest; see the module's docstring."""
    for name in MODELS:
        if (directory / PARTIAL / name).is_dir():
            (directory / PARTIAL / name).replace(directory / name)
    manifest = {
        "format": FORMAT,
        "stage": lineage.stage,
        "fingerprint": lineage.fingerprint,
        "inputs": dict(lineage.inputs),
        "data": dict(lineage.data),
        **record,
        "environment": environment(),
        "checksums": checksums(directory, MODELS),
    }
    tell(manifest)
    write_json(directory / MANIFEST, manifest)
    tidy(directory)
    return Artifact(directory, manifest)


def tidy(directory: Path) -> None:
    """Remove from a complete stage what stood there before it, and what it needed to become complete."""
    for name in (PARTIAL, PREVIOUS, INTERRUPTED):
        discard(directory / name)


def checksums(directory: Path, folders: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file below some folders, by relative path."""
    paths = sorted(path for folder in folders for path in (directory / folder).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in paths}


def environment() -> dict[str, Any]:
    """What ran: versions, commit and machine; recorded, never compared."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": (commit.stdout.strip() or None) if commit else None,
        "packages": versions,
    }
