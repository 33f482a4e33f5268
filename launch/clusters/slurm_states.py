"""Where a stage is: by its result, by Slurm's queue, and by what its tries have left in RUN/launch/STAGE.tries.

    began JOB TRY CHECKPOINT TIME NODES
    ended JOB TRY CHECKPOINT TIME CODE

Slurm forgets a job after minutes and may keep no accounts; the tries stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.clusters.job import BAD_INPUT
from launch.clusters.scheduler import StageState, State, Submission
from launch.clusters.slurm_queue import QueuedJob, accounted, queued
from launch.clusters.submission import FOLDER
from rlhf.recipe import load_recipe
from stages.lineage import STAGES, is_current

STOP = "stop"  # in RUN/launch: somebody has cancelled, and nothing is to be requeued
RUNS = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
WAITS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")


@dataclass(frozen=True)
class Tries:
    """What a stage's tries under one job have left."""

    began: int = 0
    nodes: str = ""
    checkpoint: str = "none"  # the newest, as far as they have said
    code: int | None = None  # with which the last one has ended; None: it has not said


def read_tries(run: Path, stage: str, job: str) -> Tries:
    """Those of a job; none where nothing has begun."""
    try:
        lines = (run / FOLDER / f"{stage}.tries").read_text(encoding="utf-8").splitlines()
    except OSError:
        return Tries()
    found = Tries()
    for line in lines:
        event, *parts = line.split(" ")
        if len(parts) != 5 or parts[0] != job:
            continue
        if event == "began":
            found = Tries(found.began + 1, parts[4], parts[2])
        elif parts[4].isdigit():
            found = Tries(found.began, found.nodes, parts[2], int(parts[4]))
    return found


def states(submission: Submission, run: Path) -> list[StageState]:
    """See the module."""
    recipe = load_recipe(run / "recipe.yaml")
    ids = submission.ids
    complete = [stage for stage in submission.stages if is_current(recipe, run, stage)]
    missing = [ids[stage] for stage in submission.stages if stage not in complete and stage in ids]
    jobs = queued(missing) if missing else {}
    jobs |= accounted([name for name in missing if name not in jobs])
    found: list[StageState] = []
    for stage in submission.stages:
        tries = read_tries(run, stage, ids.get(stage, ""))
        if stage in complete:
            told = f"job {ids[stage]}{times(tries)}" if tries.began else ""
            found.append(StageState(stage, "complete", told))
        else:
            found.append(state_of(stage, ids, jobs, tries, found, (run / FOLDER / STOP).exists()))
    return found


def state_of(
    stage: str,
    ids: Mapping[str, str],
    jobs: Mapping[str, QueuedJob],
    tries: Tries,
    before: Sequence[StageState],
    cancelled: bool,
) -> StageState:
    """Of a stage that is not complete. before: those of the stages before it."""
    if stage not in ids:
        return StageState(stage, "lost", "never submitted; rlhf resume does it")
    own, job = f"job {ids[stage]}", jobs.get(ids[stage], QueuedJob("forgotten"))
    shared = any(each.state in ("running", "waiting") and ids.get(each.stage) == ids[stage] for each in before)
    if job.state in RUNS and (shared or not tries.began):  # in one allocation: behind the stage that runs
        state: State = "waiting" if shared else "running"
        return StageState(stage, state, f"{own}, behind {before[-1].stage}" if shared else f"{own} on {job.nodes}")
    if job.state in RUNS:
        return StageState(stage, "running", f"{own} on {job.nodes or tries.nodes}{times(tries)}")
    if job.state in WAITS:
        return StageState(stage, "waiting", f"{own}: {waits_for(stage, ids, job, before)}{after(tries)}")
    return ended(stage, own, job, tries, before, cancelled)


def waits_for(stage: str, ids: Mapping[str, str], job: QueuedJob, before: Sequence[StageState]) -> str:
    """Slurm's reason, and what it means."""
    if job.reason == "Dependency":
        needed = [each.stage for each in before if each.stage in STAGES[stage].inputs and each.state != "complete"]
        return f"Dependency, {' and '.join(needed)}" if needed else job.reason
    meaning = "Slurm starts it again in a moment" if job.reason == "BeginTime" else ""
    return f"{job.reason}, {meaning}" if meaning else job.reason or "Priority"


def ended(
    stage: str, own: str, job: QueuedJob, tries: Tries, before: Sequence[StageState], cancelled: bool
) -> StageState:
    """Of a job that has ended, or that Slurm has forgotten."""
    bad = [each.stage for each in before if each.state in ("failed", "stopped", "lost")]
    if not tries.began and bad and not (cancelled and job.state == "CANCELLED"):
        needed = [name for name in bad if name in STAGES[stage].inputs] or bad
        return StageState(stage, "stopped", f"{own} never began, for {needed[0]} is not complete")
    if cancelled or job.state == "CANCELLED":
        at = f", at checkpoint {tries.checkpoint}" if tries.checkpoint != "none" else ""
        return StageState(stage, "stopped", f"{own}: cancelled{at}{times(tries)}; rlhf resume goes on")
    if tries.code == BAD_INPUT:
        return StageState(stage, "failed", f"{own}: exit code 2, which another try does not mend{times(tries)}")
    if tries.code:
        return StageState(stage, "failed", f"{own}: exit code {tries.code}{times(tries)}")
    if job.state not in ("forgotten", "COMPLETED"):
        return StageState(stage, "failed", f"{own}: {job.state}{times(tries)}")
    if tries.code == 0 or job.state == "COMPLETED":
        return StageState(stage, "stopped", f"{own} is done; its recipe, data or inputs have changed since")
    return StageState(stage, "lost", f"{own}: Slurm has forgotten it{times(tries)}; rlhf resume submits it once more")


def times(tries: Tries) -> str:
    """How often it has begun, where that is worth a word."""
    return f", try {tries.began}" if tries.began > 1 else ""


def after(tries: Tries) -> str:
    """What is behind a stage that waits for its next try."""
    if not tries.began:
        return ""
    why = "" if tries.code is None else f" with exit code {tries.code}"
    return f", after try {tries.began}{why}, at checkpoint {tries.checkpoint}"
