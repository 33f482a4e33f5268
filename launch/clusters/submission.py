"""RUN/launch/: what was submitted, as it was, so that status, logs, cancel and resume find it from another process.

RUN/launch/submission.json   scheduler, ids, the command; written once everything is submitted
           *.sbatch, *.yaml  what was submitted
           logs/             what nodes have said, where the scheduler writes it to files
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from launch.clusters.scheduler import Rendered, Submission
from rlhf.errors import ArtifactError
from rlhf.store.artifact import write_json, write_text

FOLDER, SUBMISSION, LOGS = "launch", "submission.json", "logs"


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
