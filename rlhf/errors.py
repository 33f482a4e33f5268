"""What can go wrong, as a user meets it; every message is one line: field or record, value, remedy.

    RLHFError
    ├── ConfigError     a recipe or an option
    ├── DataError       a record or a file of examples
    ├── ContractError   two artifacts that do not fit together (tokenizer, template, shapes)
    ├── ArtifactError   a model directory or manifest that is missing, damaged or of another run
    ├── RewardError     a reward of one's own that does not answer, or whose answer is no score
    │   └── RewardAwayError     a server that may answer later
    ├── GenerationError a generation server that refuses, serves something else, or whose answer is no response
    │   └── GenerationAwayError one that may answer later
    ├── LabellingError  a labelling server that does not answer, refuses, or holds something else
    └── FaultError      figures that are not finite, step after step

The command line turns each of these into its lines on standard error and exit code 2, never into a traceback.
"""

from __future__ import annotations

import traceback
from pathlib import Path


class RLHFError(Exception):
    """Base of all errors that a user can mend; `problems` holds one line each."""

    transient = False  # whether another try may find it mended, without anybody's doing: a server that is away

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[type[RLHFError], tuple[str, ...]]:
        """Its problems stay apart on the way to other processes."""
        return type(self), self.problems


class ConfigError(RLHFError):
    """A recipe or an option cannot be used."""


class DataError(RLHFError):
    """A record or a file of examples cannot be used."""


class ContractError(RLHFError):
    """Two artifacts do not fit together."""


class ArtifactError(RLHFError):
    """A model directory or a manifest is missing, damaged or belongs to another run."""


class InUseError(ArtifactError):
    """A directory is held by another process."""

    transient = True


class RewardError(RLHFError):
    """A reward that a recipe names does not answer, or what it answers is no score."""


class RewardAwayError(RewardError):
    """A reward's server is away, or busy, for as long as it is waited for."""

    transient = True


class GenerationError(RLHFError):
    """A generation server that a recipe names refuses, serves another model, or what it answers is no response."""


class GenerationAwayError(GenerationError):
    """A generation server is away, busy or broken for as long as it is waited for, or weights do not get there."""

    transient = True


class LabellingError(RLHFError):
    """A labelling server does not answer, refuses, or holds something else than was put there."""


class FaultError(RLHFError):
    """Training cannot go on, for what it computes is not finite; what it has made stands."""


def raised(error: BaseException, file: str | None = None) -> str:
    """An exception of a user's code in a line: what, and where, if possible in their file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file and frame.filename == file] or frames[-1:]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return " ".join(f"{type(error).__name__}: {error}".split()) + where
