"""Files that a stage makes from its data and finds again when it goes on: trusted only if they are what was written.

Beside each file stands an account of it (.json), with the file's checksum and one of its own. The account is there
before the file is, so a file without one, or one that differs, was damaged since and is made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf.store.artifact import digest, file_digest, write_json


def sound(path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The account of a file that is as it was written; None if there is none, or if it is damaged, which is said."""
    if not path.is_file():
        return None
    account = _read(_account(path))
    if account is None:
        say(f"{path}: its account ({_account(path).name}) is missing or damaged; the file is made again")
        return None
    try:
        damage = None if file_digest(path) == account["sha256"] else "its checksum differs"
    except OSError as error:
        damage = str(error.strerror)
    if damage:
        say(f"{path}: damaged ({damage}); the file is made again")
        return None
    return account


def keep(path: Path, write: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Let a file be written whole or not at all; its account: what `write` says of it, and the checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of machines that share no disk each write their own.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial_account = partial.with_name(f"{partial.name}.json")
    try:
        account = dict(write(partial))
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        account["sha256"] = file_digest(partial)
        write_json(partial_account, {**account, "account": digest(account)})
        partial_account.replace(_account(path))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        partial_account.unlink(missing_ok=True)
    return account


def remove(path: Path) -> None:
    """Remove a file and its account."""
    path.unlink(missing_ok=True)
    _account(path).unlink(missing_ok=True)


def _account(path: Path) -> Path:
    return path.with_suffix(".json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        account = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(account, dict) or account.pop("account", None) != digest(account):
        return None
    return account
