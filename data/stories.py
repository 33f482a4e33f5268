"""Short stories for children (TinyStories), as openings to continue: real text for a model of 260,032 weights.

A story yields windows: the first eight words of a paragraph are the prompt, what follows them the completion, up to the
last sentence end that fits. Eight words break off before most sentences are decided, so that a continuation may turn
out cheerful or sad, which is what the lexicons in `data.lexicons` score. The text is not part of this package: it lies
in a data directory that the caller names (`--data-dir`).
"""

from __future__ import annotations

import functools
import gzip
import random
import re
from collections.abc import Iterator
from pathlib import Path

from rlhf.errors import DataError
from rlhf.types import Demonstration, Prompt

STORIES_FILE = "text/tinystories_sample.txt.gz"

# Characters of prompt and completion together. A token of the TinyStories model (512 entries) holds 2.0 characters, so
# windows have 80 tokens on average; 99 in a hundred have at most 109, the longest 128.
WINDOW_CHARACTERS = 190
# A completion much shorter than a sentence would teach little but to stop.
_SHORTEST_COMPLETION = 60

# A paragraph's first eight words, if the paragraph goes on in the same line.
_OPENING = re.compile(r"(?:\A|\n\n)(\S+(?: \S+){7})(?= \S)")
_SENTENCE_END = re.compile(r'(?<!\bMr)(?<!\bMrs)(?<!\bDr)[.!?]+"?(?=\s|\Z)')


def read_data_file(data_directory: str | None, name: str) -> str:
    """Text of a UTF-8 file under the data directory, unpacked if its name ends in .gz."""
    if data_directory is None:
        raise DataError(f"{name} lies in a data directory and none was named; give --data-dir DIRECTORY")
    path = Path(data_directory) / name
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give --data-dir the directory that holds {name}") from None
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); give --data-dir a directory with a sound {name}") from error


def files(data_directory: str | None) -> list[Path]:
    """The files that the examples are made from, for fingerprints."""
    read_data_file(data_directory, STORIES_FILE)
    return [Path(data_directory or ".") / STORIES_FILE]


@functools.cache
def _stories(data_directory: str | None) -> tuple[str, ...]:
    text = read_data_file(data_directory, STORIES_FILE)
    return tuple(story.strip() for story in re.split(r"(?<!\n)\n(?!\n)", text) if story.strip())


def stories(data_directory: str | None) -> list[str]:
    """Every story in the file's order; paragraphs are separated by a blank line.

    Stories are separated by single newlines, and a few dozen stories separate their paragraphs so too: of those each
    paragraph counts as a story of its own, since nothing in the file tells them apart.
    """
    return list(_stories(data_directory))


def _windows(story: str) -> Iterator[tuple[str, str]]:
    """Prompt and completion of each window of a story; windows do not overlap."""
    end_of_last = 0
    for opening in _OPENING.finditer(story):
        start, split = opening.span(1)
        window = story[start : start + WINDOW_CHARACTERS]
        # Non-ASCII characters here are quotation marks that were once decoded wrongly: no text to show or imitate.
        if start < end_of_last or not window.isascii():
            continue
        # The lookahead needs the character after the window, or an abbreviation at its edge would pass for an end.
        ends = [match.end() for match in _SENTENCE_END.finditer(story, start, start + WINDOW_CHARACTERS + 1)]
        # An odd number of quotation marks means that the sentence ends inside a speech that goes on.
        ends = [
            end
            for end in ends
            if split + _SHORTEST_COMPLETION <= end <= start + WINDOW_CHARACTERS
            and story.count('"', start, end) % 2 == 0
        ]
        if ends:
            end_of_last = ends[-1]
            yield story[start:split], story[split:end_of_last]


@functools.cache
def _all_windows(data_directory: str | None) -> tuple[tuple[str, str], ...]:
    return tuple(window for story in _stories(data_directory) for window in _windows(story))


def demonstrations(data_directory: str | None, count: int | None, seed: int) -> list[Demonstration]:
    """Openings with the continuation their author wrote, shuffled by `seed`; `count` None means all there are.

    The completion keeps its leading space, so prompt + completion is a piece of the story. Several demonstrations may
    share a prompt ("Once upon a time, there was a little"): split into training and held-out by the prompt's text.
    """
    windows = list(_all_windows(data_directory))
    if count is not None and not 0 < count <= len(windows):
        raise DataError(f"{count} demonstrations of stories are not to be had; ask for 1 to {len(windows)}")
    random.Random(seed).shuffle(windows)
    return [Demonstration(Prompt(prompt), completion) for prompt, completion in windows[:count]]


def prompts(data_directory: str | None) -> list[Prompt]:
    """The distinct openings, in the file's order."""
    return [Prompt(text) for text in dict.fromkeys(prompt for prompt, _ in _all_windows(data_directory))]
