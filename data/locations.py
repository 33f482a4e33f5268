"""Where a source's files are: a file, a directory, what `datasets.save_to_disk` wrote, or a data set on the hub.

    demonstrations.jsonl               a file
    votes/                             every data file below a directory, by name
    saved/train                        one split of what save_to_disk wrote
    org/name@COMMIT                    every data file of the hub's data set at that commit
    org/name@COMMIT:data/train-*       those whose path matches, or lies below

A local path wins over a hub id. Loads no torch.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import re
import sys
from collections import deque
from pathlib import Path

from data.records import KINDS, DataFile, one_line, printable, shown
from rlhf.errors import DataError
from rlhf.store.artifact import digest, file_digest

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".arrow")
# What stands beside the data of a data set, and is none.
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[^:@]*)(?::(?P<pattern>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def files_of(source: str, directory: str | None) -> list[DataFile]:
    """The files of a source, in the order they are read; what lies on the hub is fetched."""
    path = Path(directory or ".") / source
    try:
        if path.is_file():
            return [DataFile(path, _name(path))]
        if path.is_dir():
            return _files_of_directory(path, source)
    except OSError as error:
        raise DataError(f"{_name(path)}: cannot be read ({one_line(error)}); give {KINDS}") from error
    if hub := _HUB_ID.fullmatch(source):
        return _fetch(hub["repository"], _pinned(source, hub), hub["pattern"])
    remedy = "relative paths start at data.directory (--data-dir)"
    if re.fullmatch(r"[\w-]+/[\w.-]+", source) and not source.lower().endswith(SUFFIXES):
        remedy += f"; a data set on the hub needs its commit: {source}@COMMIT"
    raise DataError(f"{_name(path)}: no such file or directory; {remedy}")


def not_read(source: str, directory: str | None) -> list[str]:
    """Names of what lies in a source's directory and is not read, hidden files aside."""
    path = Path(directory or ".") / source
    if not path.is_dir() or _is_saved(path):
        return []
    return [printable(left.relative_to(path).as_posix()) + "/" * left.is_dir() for left in _below(path)[1]]


def few(names: list[str], limit: int = 5) -> str:
    """Some names in a short line."""
    more = f", and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def content_hash(source: str, directory: str | None) -> str:
    """Hash of a source's files: their names and contents, or the hub id, whose commit stands for them."""
    path = Path(directory or ".") / source
    hub = _HUB_ID.fullmatch(source)
    if hub and not path.exists():
        return digest([hub["repository"], _pinned(source, hub), hub["pattern"]])
    files = files_of(source, directory)
    if path.is_file():
        return _digest_of(path)
    return digest([[file.path.relative_to(path).as_posix(), _digest_of(file.path)] for file in files])


def _digest_of(path: Path) -> str:
    status = path.stat()
    return _cached_digest(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _cached_digest(path: Path, size: int, modified: int) -> str:
    """A file is hashed once in a process: several stages ask for the same gigabytes."""
    return file_digest(path)


def _name(path: Path) -> str:
    """A path as it stands in front of an error, which is one line whatever the path is."""
    text = str(path)
    return text if text.isprintable() else shown(text, 200)


def _files_of_directory(path: Path, source: str) -> list[DataFile]:
    if (path / "dataset_dict.json").is_file():
        splits = _saved(path / "dataset_dict.json", "splits")
        choices = " or ".join(f"{source.rstrip('/')}/{split}" for split in splits) or "one of its directories"
        raise DataError(f"{_name(path)}: holds several splits; give {choices}")
    if _is_saved(path):
        names = _saved(path / "state.json", "_data_files")
        return [_saved_file(path, name) for name in names]
    files = _data_files(path, None)
    if not files:
        raise DataError(f"{_name(path)}: a directory without a data file; give one with {', '.join(SUFFIXES)}")
    return [DataFile(file, _name(file)) for file in files]


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _saved(path: Path, field: str) -> list[str]:
    """A list in the files that save_to_disk writes beside the data."""
    problem = f"{_name(path)}: not what save_to_disk writes; save the data set again"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))[field]
        names = [value["filename"] if isinstance(value, dict) else value for value in values]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(problem) from None
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise DataError(problem)
    return names


def _saved_file(directory: Path, name: str) -> DataFile:
    path = directory / name
    if not path.is_file():
        raise DataError(f"{_name(path)}: missing, though state.json names it; save the data set again")
    return DataFile(path, _name(path))


def _data_files(directory: Path, pattern: str | None) -> list[Path]:
    """Data files below a directory, by name."""
    return [path for path in _below(directory)[0] if _matches(path.relative_to(directory).as_posix(), pattern)]


def _below(directory: Path) -> tuple[list[Path], list[Path]]:
    """Data files below a directory, by name, and what else is there; hidden files and directories are neither.

    Links are followed. A directory that several ways lead to is read once, by the way without links if there is one.
    """
    found: list[Path] = []
    left: list[Path] = []
    seen: set[Path] = set()
    waiting = deque([directory])
    while waiting:
        here = waiting.popleft()
        if here.resolve() in seen:
            left.append(here)
            continue
        seen.add(here.resolve())
        for path in sorted(path for path in here.iterdir() if not path.name.startswith(".")):
            if path.is_dir() and not path.name.startswith("_"):
                (waiting.append if path.is_symlink() else waiting.appendleft)(path)
            elif path.is_file() and path.name.lower().endswith(SUFFIXES) and path.name not in _METADATA:
                found.append(path)
            else:
                left.append(path)
    return sorted(found), sorted(left)


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is None or fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern.rstrip("/") + "/")


def _pinned(source: str, hub: re.Match[str]) -> str:
    """The commit of a hub id. Names of branches and tags move, and the same recipe must mean the same data."""
    if not _COMMIT.fullmatch(hub["revision"]):
        raise DataError(
            f"{shown(source)}: the revision {hub['revision']!r} is no commit (and no such path is here); write the 40 "
            f"hexadecimal digits of one behind the @, or the path of a local file"
        )
    return hub["revision"]


def _fetch(repository: str, commit: str, pattern: str | None) -> list[DataFile]:
    """The data files of a data set on the hub, from its cache or, where the hub is in reach, into it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    wanted = [f"*{suffix}" for suffix in SUFFIXES]
    if pattern is not None:
        wanted = [pattern, *(f"{pattern.rstrip('/')}/{name}" for name in wanted)]
    shown_id = f"{repository}@{commit}"
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        directory = Path(snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=wanted))
    except Exception as error:  # the client raises a dozen kinds, over two HTTP libraries
        raise DataError(
            f"{shown_id}: not in the hub's cache and cannot be fetched ({one_line(error)}); go online, or download it "
            f"and give its directory"
        ) from error
    files = _data_files(directory, pattern)
    if not files:
        raise DataError(f"{shown_id}: no data file matches {pattern or 'any of ' + ', '.join(SUFFIXES)}; mend the id")
    return [DataFile(file, f"{shown_id}:{file.relative_to(directory).as_posix()}") for file in files]
