"""The run's folder: the same one on all nodes, to be written, locked and renamed in, with room for the run."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.checking.finding import Facts, Finding, failure, listed, ok
from launch.checking.meeting import Meeting

CHECK = "folder"
SEEN_SECONDS = 15.0  # until a file of another node must be there: NFS keeps an answer that there is none for some
RENAMED_SECONDS = 1.0  # for which one node renames and all others read
PAUSE_SECONDS = 0.002
EXCHANGE_SECONDS = 60.0


class Folder(Facts):
    """What a node has found in the run's folder."""

    place: str  # the run directory, or the nearest one above it that is there
    error: str | None = None  # why it cannot be written
    locks: bool = True
    unseen: tuple[int, ...] = ()  # ranks whose files do not appear
    seconds: float = 0.0  # until the last one did
    torn: int = 0  # readings that found no file, or not a whole one, while another was renamed onto it
    read: int = 0


class Probe:
    """Files of all nodes in a folder of their own inside the run's; nothing of them is left."""

    def __init__(self, run: Path, meeting: Meeting) -> None:
        self.meeting = meeting
        self.place = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.is_dir())
        self.folder = self.place / f".rlhf-doctor-{meeting.id}"
        self.turned = self.folder / "turned"

    def look(self) -> Folder:
        """All nodes do this together."""
        error: str | None = None
        unseen: list[int] = []
        locks, waited, torn = True, 0.0, (0, 0)
        try:
            try:
                self._write(self._file(self.meeting.rank), self._content(self.meeting.rank))
                if self.meeting.first:
                    self._write(self.turned, self._content(0))
                locks = self._locks()
            except OSError as problem:
                error = problem.strerror or type(problem).__name__
            given = self.meeting.exchange({"error": error}, EXCHANGE_SECONDS)
            writers = [rank for rank, told in given.items() if not told["error"]]
            unseen, waited = self._unseen(writers)
            # Who shares no folder with the first node has nothing to read of it.
            given = self.meeting.exchange({"reads": 0 not in unseen and 0 in writers}, EXCHANGE_SECONDS)
            torn = self._turned(given)
            self.meeting.exchange({"done": True}, EXCHANGE_SECONDS)
        finally:
            self._clear()
        return Folder(
            place=str(self.place),
            error=error,
            locks=locks,
            unseen=tuple(unseen),
            seconds=waited,
            torn=torn[0],
            read=torn[1],
        )

    def _file(self, rank: int) -> Path:
        return self.folder / f"node-{rank}"

    def _content(self, rank: int) -> str:
        return f"{self.meeting.id} {rank} " + "." * 4096

    def _write(self, path: Path, content: str) -> None:
        self.folder.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def _locks(self) -> bool:
        """Whether a file can be locked, as a run locks its directory."""
        with self._file(self.meeting.rank).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
        return True

    def _unseen(self, writers: Sequence[int]) -> tuple[list[int], float]:
        """Ranks whose files do not appear here, and how long those took that do."""
        started, missing = time.monotonic(), list(writers)
        while True:
            missing = [rank for rank in missing if self._read(self._file(rank)) != self._content(rank)]
            waited = time.monotonic() - started
            if not missing or waited > SEEN_SECONDS:
                return missing, 0.0 if missing else waited
            time.sleep(0.1)

    def _read(self, path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8")
        except OSError:
            return None

    def _turned(self, given: Mapping[int, Any]) -> tuple[int, int]:
        """The first node renames a file onto another time and again, which the others read meanwhile."""
        ends = time.monotonic() + RENAMED_SECONDS
        if not given[self.meeting.rank]["reads"]:
            return 0, 0
        if not self.meeting.first:
            return self._torn(lambda: time.monotonic() > ends)
        stop, result = threading.Event(), []
        reader = threading.Thread(target=lambda: result.append(self._torn(stop.is_set)))
        reader.start()
        with suppress(OSError):
            while time.monotonic() < ends + RENAMED_SECONDS / 2:  # the others began a moment later
                self._write(self.turned, self._content(0))
                time.sleep(PAUSE_SECONDS)
        stop.set()
        reader.join()
        return result[0]

    def _torn(self, over: Callable[[], bool]) -> tuple[int, int]:
        torn = read = 0
        while not over():
            read += 1
            torn += self._read(self.turned) != self._content(0)
            time.sleep(PAUSE_SECONDS)
        return torn, read

    def _clear(self) -> None:
        with suppress(OSError):
            self._file(self.meeting.rank).unlink()
        if self.meeting.first:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            with suppress(OSError):  # that of one who shares no folder with the first; else not empty, or gone
                self.folder.rmdir()


def judge(nodes: Mapping[str, Folder], ranks: Mapping[int, str]) -> list[Finding]:
    """What the nodes have found; ranks: their names."""
    found = []
    first = ranks[0]
    apart = {name for name, node in nodes.items() if 0 in node.unseen}
    apart |= {ranks[rank] for rank in nodes[first].unseen if ranks[rank] in nodes}
    for name, node in nodes.items():
        who = name if len(nodes) > 1 else "this machine"
        if node.place != nodes[first].place:
            what = f"{name}: {nodes[first].place} is not there, and {node.place} would be written"
            found.append(failure(CHECK, what, "mount the shared file system there, and start in the same folder"))
        elif node.error:
            what = f"{who} cannot write in {node.place}: {node.error}"
            found.append(failure(CHECK, what, "mount it for writing, change its permissions, or give another --run"))
        elif name in apart:
            what = f"{name} and {first} do not see in {node.place} what the other writes there: it is not shared"
            found.append(failure(CHECK, what, "give a --run on a file system that all nodes share"))
        elif unseen := [ranks[rank] for rank in node.unseen if ranks[rank] in nodes and ranks[rank] not in apart]:
            what = f"{name} does not see in {node.place} what {listed(unseen)} writes there: it is not shared"
            found.append(failure(CHECK, what, "give a --run on a file system that all nodes share"))
        if not node.locks:
            what = f"{who}: files in {node.place} cannot be locked, so that two runs may write one directory"
            found.append(failure(CHECK, what, "mount the file system with locks (Lustre: flock)"))
        if node.torn:
            what = (
                f"{who}: {node.torn} of {node.read} readings in {node.place} found no whole file while it was renamed"
            )
            found.append(failure(CHECK, what, "give a --run on a file system that renames atomically"))
    if not found:
        place, slowest = nodes[first].place, max(node.seconds for node in nodes.values())
        shared = f", shared by all nodes (seen after {slowest:.1f} s)" if len(nodes) > 1 else ""
        found.append(ok(CHECK, f"{place}: written, locked and renamed in atomically{shared}"))
    return found
