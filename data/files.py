"""Examples from .jsonl and .jsonl.gz files, by the standard names of their fields.

    demonstrations  {"prompt", "completion"}  or  {"messages": [..., {"role": "assistant", ...}]}
    comparisons     {"prompt", "chosen", "rejected"}, and if known "tie", "annotator", "weight"
    prompts         {"prompt"}

A prompt is a text or a list of {"role", "content"}. A record that does not fit is an error with file and line; none is
dropped.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Message, Prompt

T = TypeVar("T")


def read_demonstrations(path: Path) -> list[Demonstration]:
    """All demonstrations of a file."""
    return _read(path, _demonstration)


def read_comparisons(path: Path) -> list[Comparison]:
    """All comparisons of a file."""
    return _read(path, _comparison)


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file."""
    return _read(path, lambda record: _prompt(record["prompt"]))


def _read(path: Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    examples: list[T] = []
    problems: list[str] = []
    for number, line in _lines(path):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a record is an object, not {type(record).__name__}")
            examples.append(parse(record))
        except KeyError as error:
            problems.append(f"{path}:{number}: no field {error}; see the module data.files for the fields")
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            problems.append(f"{path}:{number}: {error}; mend or remove this line")
    if problems:
        more = [f"{path}: {len(problems) - 10} more records cannot be used"] if len(problems) > 10 else []
        raise DataError(*problems[:10], *more)
    if not examples:
        raise DataError(f"{path}: no records; give a file with one JSON object a line")
    return examples


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; relative paths start at data.directory (--data-dir)")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); give UTF-8 .jsonl or .jsonl.gz") from error


def _demonstration(record: dict[str, Any]) -> Demonstration:
    if "messages" in record:
        turns = _messages(record["messages"])
        if len(turns) < 2:
            raise ValueError("messages must end with an assistant turn behind at least one other")
        return Demonstration(Prompt(turns[:-1]), _answer(turns, "messages"))
    return Demonstration(_prompt(record["prompt"]), _response(record, "completion"))


def _comparison(record: dict[str, Any]) -> Comparison:
    chosen, rejected = _response(record, "chosen"), _response(record, "rejected")
    if chosen == rejected:
        raise ValueError("chosen and rejected are identical")
    tie, weight = record.get("tie", False), record.get("weight", 1.0)
    if not isinstance(tie, bool):
        raise ValueError(f"tie={tie!r} is not true or false")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ValueError(f"weight={weight!r} is not a number from 0 up")
    annotator = record.get("annotator")
    name = None if annotator is None else str(annotator)
    return Comparison(_prompt(record["prompt"]), chosen, rejected, tie=tie, annotator=name, weight=float(weight))


def _response(record: dict[str, Any], field: str) -> str:
    value = record[field]
    if isinstance(value, list):  # TRL's conversational form: the response as one assistant turn
        return _answer(_messages(value), field)
    return _text(value, field)


def _answer(turns: tuple[Message, ...], field: str) -> str:
    if turns[-1].role != "assistant":
        raise ValueError(f"{field} must end with an assistant turn")
    return _text(turns[-1].content, field)


def _prompt(value: Any) -> Prompt:
    return Prompt(_messages(value) if isinstance(value, list) else _text(value, "prompt"))


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} is not a text with content")
    value.encode()  # half of a surrogate pair passes json, but no tokenizer; UnicodeEncodeError is a ValueError
    return value


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages are not a list with content")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
            raise ValueError("a message needs a role (system, user or assistant)")
        if not isinstance(turn.get("content"), str):
            raise ValueError("a message needs a content of text")
        turn["content"].encode()
        turns.append(Message(turn["role"], turn["content"]))
    return tuple(turns)
