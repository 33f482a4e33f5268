"""Openings and continuations of stories: counts, pieces of the original text, determinism and errors."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from published import published_data  # noqa: F401  # the fixture `real_data`

from data.stories import STORIES_FILE, WINDOW_CHARACTERS, demonstrations, prompts, stories
from rlhf.errors import DataError

ROOT = Path(__file__).parents[1]
FIRST = (
    "Once there was a cat that lived in Mr. Gray's house. It slept all day and hunted all night, and that was that.\n\n"
    "Too short.\n\n"
    'One day the cat met a dog who said, "Hello. I am new here and I have no friends at all yet." The cat ran off. '
    "It hid under Mr. Gray's wooden bed for a long while and did not come out again until the dog had gone home.\n\n"
    "Every â€œmarkâ€ that was decoded wrongly keeps its window out, however long and well "
    "the story goes on after that."
)


@pytest.fixture
def small_data(tmp_path: Path) -> str:
    """A directory with three short stories, one of them blank."""
    (tmp_path / "text").mkdir()
    (tmp_path / STORIES_FILE).write_bytes(gzip.compress(f"{FIRST}\n \nThe end of it all.\n".encode()))
    return str(tmp_path)


def test_stories_split_at_single_newlines(small_data: str) -> None:
    """Blank lines stay inside a story; blank stories go."""
    assert stories(small_data) == [FIRST, "The end of it all."]


def test_windows_of_a_story(small_data: str) -> None:
    """Eight words, then whole sentences: no abbreviation, open speech or wrongly decoded mark at the end or inside."""
    found = {example.prompt.text: example.completion for example in demonstrations(small_data, None, seed=0)}
    assert found == {
        "Once there was a cat that lived in": (
            " Mr. Gray's house. It slept all day and hunted all night, and that was that.\n\nToo short."
        ),
        "One day the cat met a dog who": (
            ' said, "Hello. I am new here and I have no friends at all yet." The cat ran off.'
        ),
    }


def test_window_that_breaks_off_inside_a_number(tmp_path: Path) -> None:
    """A full stop that is the window's last character ends a sentence only if a space follows it."""
    before = "Tom saved all his money for one red kite. He told his mom about it twice, and then about it again. It was"
    story = before + " so" * ((WINDOW_CHARACTERS - len(before) - 8) // 3)
    story += " much: " + "3" * (WINDOW_CHARACTERS - len(story) - 8) + ".50 in all."
    assert story[WINDOW_CHARACTERS - 1] == "."
    (tmp_path / "text").mkdir()
    (tmp_path / STORIES_FILE).write_bytes(gzip.compress(story.encode()))
    [example] = demonstrations(str(tmp_path), None, seed=0)
    assert example.completion == " kite. He told his mom about it twice, and then about it again."


def test_counts(real_data: str) -> None:
    """As many stories as the published sample is said to hold, and enough prompts for a run."""
    assert abs(len(stories(real_data)) - 1097) <= 5
    texts = [prompt.text for prompt in prompts(real_data)]
    assert len(texts) == len(set(texts)) >= 1500
    assert all(len(text.split()) == 8 and text == text.strip() for text in texts)


def test_demonstrations_are_pieces_of_stories(real_data: str) -> None:
    """Prompt + completion is in the original text, ends with a sentence and fits the window."""
    whole = "\n".join(stories(real_data))
    examples = demonstrations(real_data, None, seed=0)
    pieces = [example.prompt.text + example.completion for example in examples]
    assert all(example.completion.startswith(" ") for example in examples)
    assert all(len(piece) <= WINDOW_CHARACTERS and piece.rstrip('"').endswith((".", "!", "?")) for piece in pieces)
    assert all(piece in whole for piece in pieces)
    assert {example.prompt for example in examples} == set(prompts(real_data))


def test_windows_do_not_overlap(real_data: str) -> None:
    """No stretch of text is shown twice: pieces cover at most the text, each in its own place."""
    whole = "\n".join(stories(real_data))
    pieces = [example.prompt.text + example.completion for example in demonstrations(real_data, None, seed=0)]
    once = sorted((whole.index(piece), len(piece)) for piece in pieces if whole.count(piece) == 1)
    assert len(once) > 0.99 * len(pieces)
    assert all(start + length <= following for (start, length), (following, _) in zip(once, once[1:], strict=False))


def test_order_follows_the_seed_alone(real_data: str) -> None:
    """The same seed gives the same examples, in another process too; a count takes the first of them."""
    examples = demonstrations(real_data, None, seed=3)
    assert demonstrations(real_data, 50, seed=3) == examples[:50]
    other = demonstrations(real_data, None, seed=4)
    assert other != examples and sorted(map(str, other)) == sorted(map(str, examples))
    code = "import sys; from data.stories import *; print(demonstrations(sys.argv[1], 5, 3), prompts(sys.argv[1])[:5])"
    result = subprocess.run(
        [sys.executable, "-c", code, real_data],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert result.stdout.strip() == f"{examples[:5]} {prompts(real_data)[:5]}"


def test_missing_or_damaged_file_names_the_remedy(tmp_path: Path) -> None:
    """No directory, an empty one, and a file that breaks off: one line that names --data-dir."""
    damaged = tmp_path / "damaged"
    (damaged / "text").mkdir(parents=True)
    (damaged / STORIES_FILE).write_bytes(gzip.compress(FIRST.encode())[:-9])
    for directory in (None, str(tmp_path), str(damaged)):
        with pytest.raises(DataError, match="give --data-dir") as caught:
            stories(directory)
        assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, -1, 3])
def test_impossible_count(small_data: str, count: int) -> None:
    """More than there are, or none: the message says how many there are."""
    with pytest.raises(DataError, match=f"{count} demonstrations of stories are not to be had; ask for 1 to 2"):
        demonstrations(small_data, count, seed=0)
