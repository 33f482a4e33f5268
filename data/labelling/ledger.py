"""What is remembered of a labelling project on this side, in a directory of its own:

    project.json       which project of which server it is, and what its page asks
    ledger.jsonl       every pair that was pushed: its texts, its gold answer, which response people see as A
    in-flight.json     the batch that was being sent, while it is
    state.jsonl        what the server last said, a line for each task with annotations
    annotators.json    who the numbers in `annotator` are
    watch.json         the webhook of a watch, while there is one
    votes.jsonl        the votes, as comparisons: what a recipe reads
    calibration.jsonl  the votes on gold pairs, likewise
    rejects.jsonl      every annotation that gives no vote, and why
    summary.json       how many of each

Tasks on the server hold the texts and the pair's id alone: who looks at them learns neither which response came first,
nor which pairs are gold, nor who wrote what. Every file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from data.fields import prompt_of
from data.labelling.pairs import Pair, turns_of
from rlhf.errors import ArtifactError, LabellingError
from rlhf.store.artifact import digest, write_bytes, write_json
from rlhf.store.unfinished import hold

LABELS = Path("labels")
HELD_SECONDS = 600.0  # for which a command waits for others that write to its directory
PROJECT, LEDGER, IN_FLIGHT, STATE = "project.json", "ledger.jsonl", "in-flight.json", "state.jsonl"
VOTES, CALIBRATION, REJECTS, SUMMARY = "votes.jsonl", "calibration.jsonl", "rejects.jsonl", "summary.json"
ANNOTATORS, WATCH = "annotators.json", "watch.json"


class Busy(ArtifactError):
    """Another command writes to the directory."""


@dataclass(frozen=True)
class Entry:
    """A pair that was pushed, and how it is shown."""

    pair: Pair
    first_is_a: bool

    @property
    def responses(self) -> tuple[str, str]:
        """What stands as A, and as B."""
        pair = self.pair
        return (pair.first, pair.second) if self.first_is_a else (pair.second, pair.first)

    def data(self) -> dict[str, str]:
        """What the server holds of it, and people may see."""
        a, b = self.responses
        return {"prompt": rendered(self.pair), "response_a": a, "response_b": b, "pair_id": self.pair.id}

    def shows(self, seen: str) -> bool:
        """Whether a task, as `digest_of` tells it, shows what was pushed."""
        return seen == digest_of(self.data())


@dataclass(frozen=True)
class Project:
    """A project of a server."""

    url: str
    id: int
    title: str
    created_at: str  # with the number, what tells it from projects of other servers, whatever their addresses
    seed: int
    dimensions: tuple[str, ...] = ()  # rated from 1 to 5 for each response, beside the preference


@dataclass
class Ledger:
    """The directory of a project."""

    directory: Path
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path) -> Ledger:
        """What stands in a directory; nothing where it is new. Raises ArtifactError where it is damaged."""
        ledger = cls(directory)
        for record in read_lines(directory / LEDGER):
            try:
                entry = _entry_of(record)
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(directory / LEDGER, error) from error
            ledger.entries[entry.pair.id] = entry
        return ledger

    @property
    def project(self) -> Project | None:
        """The project that it belongs to, once it is known. Raises ArtifactError where the file is damaged."""
        path = self.directory / PROJECT
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return Project(**{**record, "dimensions": tuple(record["dimensions"])})
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, error) from error

    def require_project(self) -> Project:
        """The project. Raises ArtifactError where nothing was pushed from here."""
        project = self.project
        if project is None:
            known = ", ".join(sorted(f"{path.parent}" for path in LABELS.glob(f"*/{PROJECT}"))) or "none"
            raise ArtifactError(f"{self.directory}: no labelling project (there: {known}); rlhf label push makes one")
        return project

    def keep_project(self, project: Project) -> None:
        """Remember the project."""
        write_json(self.directory / PROJECT, asdict(project))

    def add(self, pairs: Iterable[Pair], seed: int) -> list[Entry]:
        """Take up pairs, and remember them before anything of them is shown; the entries of all, in their order.

        One that is known keeps its side; its gold answer and its kind follow what is said now.
        """
        found = []
        for pair in pairs:
            known = self.entries.get(pair.id)
            if known is None:
                entry = Entry(pair, first_is_a(pair.id, seed))
            else:
                answer = pair.answer
                if answer in ("first", "second") and pair.first != known.pair.first:
                    answer = "second" if answer == "first" else "first"
                told = {name: value for name, value in (("answer", answer), ("kind", pair.kind)) if value is not None}
                entry = replace(known, pair=replace(known.pair, **told))  # type: ignore[arg-type]
            self.entries[pair.id] = entry
            found.append(entry)
        self.write()
        return found

    def turn(self, pair_id: str) -> None:
        """Show a pair the other way round, as the server has it; `write` remembers it."""
        entry = self.entries[pair_id]
        self.entries[pair_id] = replace(entry, first_is_a=not entry.first_is_a)

    def write(self) -> None:
        """Write the ledger."""
        write_lines(self.directory / LEDGER, (_record_of(entry) for entry in self.entries.values()))

    @contextmanager
    def held(self, patience: float = HELD_SECONDS) -> Iterator[None]:
        """Keep other processes from writing here, once those that do are done, for which `patience` seconds are waited.

        Raises Busy where they are not, ArtifactError where nothing can be written.
        """
        deadline, said = time.monotonic() + patience, False
        while (lock := self._lock()) is None:
            if time.monotonic() >= deadline:
                raise Busy(f"{self.directory}: another rlhf label command is at work here; wait until it is done")
            if not said:
                waits = f"{self.directory}: another rlhf label command is at work here; this one waits for it"
                print(waits, file=sys.stderr, flush=True)
                said = True
            time.sleep(0.2)
        with lock:
            yield

    def _lock(self) -> IO[str] | None:
        """The lock; None where another process has it."""
        try:
            return hold(self.directory)
        except ArtifactError as error:
            if isinstance(error.__cause__, BlockingIOError):
                return None
            raise ArtifactError(str(error).replace("another --run", "another --directory")) from error


def directory_of(title: str, given: Path | None = None) -> Path:
    """Where a project's files are: below labels/, unless said otherwise."""
    if given is not None:
        return given
    slug = re.sub(r"[^\w.-]+", "-", title.lower()).strip("-.") or digest(title)[:12]
    return LABELS / slug


def first_is_a(pair_id: str, seed: int) -> bool:
    """Which side a pair's first response is shown on: half of them left, by a coin that seed and pair toss."""
    return hashlib.sha256(f"{seed}/sides/{pair_id}".encode()).digest()[0] % 2 == 0


def digest_of(data: Mapping[str, Any]) -> str:
    """What a task shows, in 32 characters."""
    return digest([data.get(name) for name in ("prompt", "response_a", "response_b", "pair_id")])[:32]


def rendered(pair: Pair) -> str:
    """A prompt as people read it: of a conversation of several turns, who says what."""
    content = pair.prompt.content
    if isinstance(content, str) or [message.role for message in content] == ["user"]:
        return pair.prompt.text
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in content)


def _record_of(entry: Entry) -> dict[str, Any]:
    pair = entry.pair
    record: dict[str, Any] = {"id": pair.id, "prompt": turns_of(pair.prompt), "first": pair.first}
    record |= {"second": pair.second, "first_is_a": entry.first_is_a}
    record |= {"first_finished": pair.first_finished, "second_finished": pair.second_finished}
    return record | {"kind": pair.kind, "answer": pair.answer, "origin": pair.origin}


def _entry_of(record: Mapping[str, Any]) -> Entry:
    fields = ("first", "second", "first_finished", "second_finished", "kind", "answer", "origin")
    pair = Pair(prompt_of(record), **{name: record[name] for name in fields})
    if pair.id != record["id"]:
        raise ValueError(f"pair {record['id']} has other texts than it was pushed with")
    return Entry(pair, record["first_is_a"])


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of ours; none where there is no file. Raises ArtifactError where it is damaged."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        while True:
            try:
                line = next(file, None)
                record = None if line is None else json.loads(line)
            except ValueError as error:
                raise damaged(path, error) from error
            if record is None:
                return
            yield record


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as lines of JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def damaged(path: Path, error: Exception) -> ArtifactError:
    """A file of ours that cannot be read."""
    again = {
        LEDGER: ", then push the same files again, with the same --gold",
        PROJECT: ", then push again with the same --seed and --rate",
    }
    remedy = f"remove it{again.get(path.name, '')}"
    return ArtifactError(f"{path}: damaged ({' '.join(str(error).split()) or type(error).__name__}); {remedy}")


def require_same(project: Project, found: Mapping[str, Any], url: str) -> None:
    """Raise LabellingError where a directory belongs to another project than what a server has."""
    if (project.id, project.created_at) != (found["id"], found["created_at"]):
        raise LabellingError(
            f"{project.title}: its directory belongs to another project (number {project.id} of {project.url}) than "
            f"number {found['id']} of {url}; give another --directory, or remove what it holds"
        )
