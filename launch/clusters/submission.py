"""RUN/launch/: what was submitted, as it was, so that status, logs, cancel and resume find it from another process.

RUN/launch/submission.json   scheduler, ids, the command; written once everything is submitted
           *.sbatch, *.yaml  what was submitted
           .submit           held by whoever submits
           logs/             what nodes have said, where the scheduler writes it to files
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from launch.clusters.scheduler import Rendered, Submission
from rlhf.errors import ArtifactError, InUseError
from rlhf.store.artifact import write_json, write_text

FOLDER, SUBMISSION, LOGS, LOCK = "launch", "submission.json", "logs", ".submit"


def write_rendered(run: Path, rendered: Sequence[Rendered]) -> Path:
    """Write what is to be submitted; the folder."""
    folder = run / FOLDER
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    for each in rendered:
        write_text(folder / each.name, each.text)
    return folder


def write_submission(run: Path, submission: Submission) -> None:
    """Keep what was submitted."""
    write_json(run / FOLDER / SUBMISSION, asdict(submission))


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keep others from submitting the same run meanwhile; where this fails, directories that it has made go again.

    Raises InUseError where somebody else is at it.
    """
    made = [path for path in (run.parent, run, run / FOLDER) if not path.exists()]
    try:
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{run}: cannot be written ({error.strerror}); give another --run") from error
    with (run / FOLDER / LOCK).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUseError(f"{run}: another rlhf launch submits it just now; rlhf status {run} shows it") from error
        try:
            yield
        except BaseException:
            for path in (path for path in made if path != run.parent):
                shutil.rmtree(path, ignore_errors=True)
            if run.parent in made:
                with suppress(OSError):  # somebody else's run is in it by now
                    run.parent.rmdir()
            raise


@contextmanager
def submitting(run: Path, submission: Submission) -> Iterator[None]:
    """Keep what is about to be submitted: who is killed behind this has something that others can find.

    Where submitting fails, what was kept before is kept again.
    """
    path = run / FOLDER / SUBMISSION
    before = path.read_bytes() if path.is_file() else None
    write_submission(run, submission)
    try:
        yield
    except BaseException:  # Ctrl-C as well
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)
        raise


def read_submission(run: Path) -> Submission:
    """What was submitted last. Raises ArtifactError where nothing was, or nothing that can be read."""
    path = run / FOLDER / SUBMISSION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Submission(**{**content, "stages": tuple(content["stages"]), "command": tuple(content["command"])})
    except FileNotFoundError as error:
        raise ArtifactError(f"{run}: nothing was submitted from here; rlhf launch RECIPE --on ... does") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); cancel by the scheduler's own tools") from error
