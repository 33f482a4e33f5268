"""The seam of schedulers: each renders purely, submits thinly, and finds again what it has submitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from launch.clusters.job import RunSpec
from launch.clusters.site import Site

State = Literal["waiting", "running", "complete", "failed", "stopped", "lost"]


@dataclass(frozen=True)
class Rendered:
    """One text that would be submitted: a script, a manifest, or command lines."""

    name: str  # of its file below RUN/launch/
    text: str


@dataclass(frozen=True)
class Submission:
    """What was submitted, as RUN/launch/submission.json keeps it, so that another process finds it again."""

    scheduler: str
    name: str  # the recipe's
    directory: str  # where commands are started
    stages: tuple[str, ...]
    time: float  # seconds since 1970
    command: tuple[str, ...]  # the `rlhf launch` that did it: resume starts it once more
    ids: Mapping[str, str] = field(default_factory=dict)  # of each stage, as the scheduler knows it
    facts: Mapping[str, str] = field(default_factory=dict)  # whatever else this scheduler needs: namespace, hosts ...


@dataclass(frozen=True)
class StageState:
    """Where a stage is, by the scheduler and by its files."""

    stage: str
    state: State
    told: str  # for people: job id, nodes, reason, tries


class Scheduler(Protocol):
    """One kind of cluster."""

    name: str

    def check(self, spec: RunSpec, site: Site) -> None:
        """Raise ConfigError with a line for each thing that would fail here: no sbatch, no such partition, ..."""
        ...

    def render(self, spec: RunSpec, site: Site) -> Sequence[Rendered]:
        """What would be submitted. Pure."""
        ...

    def submit(self, spec: RunSpec, site: Site, rendered: Sequence[Rendered], folder: Path) -> Submission:
        """Submit; folder: RUN/launch, where what was rendered lies. Raises ConfigError, leaving nothing behind."""
        ...

    def states(self, submission: Submission, run: Path) -> list[StageState]:
        """Where each stage is."""
        ...

    def logs(self, submission: Submission, run: Path, stage: str, rank: int | None, follow: bool) -> Iterator[str]:
        """Lines that a stage has written, of one rank or all; follow: and those that it writes until it ends."""
        ...

    def cancel(self, submission: Submission, run: Path) -> list[str]:
        """Stop everything behind a checkpoint; what was done, a line each. Nothing to stop is no error."""
        ...
