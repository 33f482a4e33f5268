"""Every answer of a judge, a line each, as it comes: OUTPUT.answers.

The first line says who was asked what. A kill may leave half a line at the end, which is cut off; what was answered is
never asked again. The name ends so that no reader of data takes it for examples.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from data.judging.questions import Said, parse
from rlhf.errors import ArtifactError

SUFFIX = ".answers"
FORMAT = 1


@dataclass(frozen=True)
class Answer:
    """What a judge has said to a question."""

    pair: str
    swapped: bool
    said: str | None  # None: nothing but reasons, or a refusal
    finish: str | None = None  # why it stopped, as the server has it: stop, length, content_filter
    prompt_tokens: int | None = None  # None: the server does not say
    answer_tokens: int | None = None
    seconds: float = 0.0
    time: float = 0.0  # seconds since 1970, UTC

    @cached_property
    def choice(self) -> Said | None:
        """A, B or tie; None where it says nothing of these."""
        return parse(self.said)

    @property
    def tokens(self) -> int:
        """Tokens that it has used, as far as that is known."""
        return (self.prompt_tokens or 0) + (self.answer_tokens or 0)


class Journal:
    """The answers of one judge to one rubric; held by one process at a time."""

    def __init__(self, path: Path, file: BinaryIO, answers: dict[tuple[str, bool], Answer], cut: int) -> None:
        self.path = path
        self.file = file
        self.answers = answers
        self.cut = cut  # bytes of half a line that were cut off
        self.tokens = 0  # that all answers have used

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Journal:
        """What stands in a file, ready for more; a new one where there is none.

        Raises ArtifactError where another process writes it, it is damaged, or it is of another judge or rubric.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ArtifactError(f"{path}: in use by another rlhf process; wait or give another --output") from error
        try:
            return cls._opened(path, file, {"format": FORMAT, **identity})
        except BaseException:
            file.close()
            raise

    @classmethod
    def _opened(cls, path: Path, file: BinaryIO, header: Mapping[str, Any]) -> Journal:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            file.truncate(len(whole))
        lines = whole.splitlines()
        journal = cls(path, file, {}, len(content) - len(whole))
        if not lines:
            journal._write(header)
            return journal
        _require_same(path, _record(path, 1, lines[0]), header)
        for number, line in enumerate(lines[1:], start=2):
            try:
                answer = Answer(**_record(path, number, line))
            except TypeError as error:
                raise _damaged(path, number) from error
            journal._take(answer)
        return journal

    def add(self, answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns."""
        self._write(asdict(answer))
        self._take(answer)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def _take(self, answer: Answer) -> None:
        self.answers[answer.pair, answer.swapped] = answer
        self.tokens += answer.tokens

    def _write(self, record: Mapping[str, Any]) -> None:
        line = (json.dumps(record) + "\n").encode("ascii")
        end = os.fstat(self.file.fileno()).st_size
        if self.file.write(line) != len(line):
            self.file.truncate(end)
            raise OSError(f"{self.path}: the disk is full")
        os.fsync(self.file.fileno())


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number) from error
    if not isinstance(record, dict):
        raise _damaged(path, number)
    return record


def _require_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        what = ", ".join(_difference(name, found.get(name), wanted[name]) for name in differing)
        raise ArtifactError(f"{path}: holds answers to other questions ({what}); give another --output, or remove it")


def _difference(name: str, found: Any, wanted: Any) -> str:
    told = [json.dumps(value) for value in (found, wanted)]
    return name if max(map(len, told)) > 60 else f"{name}: {told[0]}, now {told[1]}"


def _damaged(path: Path, number: int) -> ArtifactError:
    return ArtifactError(f"{path}:{number}: damaged; remove this line, and its question is asked again")
