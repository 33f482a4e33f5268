"""Files that a stage finds again are used only as they were written; ratings without partners are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import sources
from data.formats import write_jsonl
from data.ratings import Rating
from data.scratch import keep, sound
from rlhf.config import DataConfig, SourceConfig
from rlhf.errors import DataError
from rlhf.types import Demonstration, Prompt
from stages.rows import Keeping, Rows
from stages.sft import encode
from tests.test_models import tiny_tokenization

DEMONSTRATIONS = [Demonstration(Prompt(f"the cat {i}"), "ran " * (i % 7 + 1)) for i in range(600)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path) -> None:
    account = json.loads(path.read_text())
    path.write_text(json.dumps(account | {"rows": account["rows"] - 1}))


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "flipped": (".arrow", flip, "damaged (its checksum differs)"),
    "cut": (".arrow", cut, "damaged (its checksum differs)"),
    "no account": (".json", Path.unlink, "its account"),
    "a cut account": (".json", cut, "its account"),
    "a changed account": (".json", change, "its account"),
    "an account of no object": (".json", lambda path: path.write_text("[]") and None, "its account"),
}
damages = pytest.mark.parametrize(("suffix", "damage", "told"), DAMAGE.values(), ids=DAMAGE)


def rows(path: Path, said: list[str]) -> Rows:
    return encode(DEMONSTRATIONS, tiny_tokenization(), Keeping(999, "sft.max_length", "fail", path, said.append))


@damages
def test_damaged_rows_are_told_and_written_again(
    suffix: str, damage: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    said: list[str] = []
    path = tmp_path / "training.arrow"
    rows(path, said)
    written = path.read_bytes()
    damage(path.with_suffix(suffix))
    assert said == [] and len(rows(path, said).dataset) == 600
    assert len(said) == 1 and said[0].startswith(f"{path}: {told}") and path.read_bytes() == written
    assert list(rows(path, said).dataset)[-1] and len(said) == 1


def test_rows_that_lost_their_last_batch_are_not_taken_for_too_long(tmp_path: Path) -> None:
    import pyarrow as pa

    said: list[str] = []
    path = tmp_path / "training.arrow"
    rows(path, said)
    with pa.ipc.open_stream(path.read_bytes()) as stream:
        schema, first = stream.schema, stream.read_next_batch()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(first)
    assert len(rows(path, said).dataset) == 600 and len(said) == 1 and "left out" not in said[0]


@damages
def test_damaged_examples_are_told_and_written_again(
    suffix: str, damage: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [Prompt(f"{i}") for i in range(100)])
    config = DataConfig(directory=str(tmp_path), prompts=[SourceConfig(path="a.jsonl")])
    first = sources.prompts(config, 0, tmp_path / "scratch")
    (path,) = (tmp_path / "scratch").glob("*.arrow")
    damage(path.with_suffix(suffix))
    again = sources.prompts(config, 0, tmp_path / "scratch")
    assert again.notes[0].startswith(f"{path}: {told}") and again.notes[1:] == first.notes
    assert (list(again.train), list(again.test)) == (list(first.train), list(first.test))
    assert sources.prompts(config, 0, tmp_path / "scratch").notes == first.notes


def test_an_account_ahead_of_its_file_does_not_vouch_for_the_one_before(tmp_path: Path) -> None:
    """Killed between the two, a writer leaves the new account beside the old file."""
    path, other, said = tmp_path / "x.arrow", tmp_path / "y.arrow", list[str]()
    for file, text in ((path, "old"), (other, "new")):
        keep(file, lambda partial, text=text: {"rows": partial.write_text(text)})  # type: ignore[misc]
    other.with_suffix(".json").replace(path.with_suffix(".json"))
    assert sound(path, said.append) is None and len(said) == 1
    assert sound(tmp_path / "nix.arrow", said.append) is None and len(said) == 1


def rated(tmp_path: Path, ratings: list[Rating], **options: Any) -> DataConfig:
    write_jsonl(tmp_path / "r.jsonl", ratings)
    source = SourceConfig(path="r.jsonl", **options)
    return DataConfig(directory=str(tmp_path), test_fraction=0.3, comparisons=[source])


def test_rated_texts_without_a_partner_are_counted(tmp_path: Path) -> None:
    paired = [Rating(f"text {i}", float(i), Prompt(f"p {i // 2}"), f"p {i // 2}") for i in range(100)]
    alone = [Rating(f"alone {i}", 1.0, Prompt(f"q {i}"), f"q {i}") for i in range(50)]
    same = [Rating(text, 1.0, Prompt("s"), "s") for text in ("a", "a", "b")]
    split, _ = sources.comparisons(rated(tmp_path, [*paired, *alone, *same]), 0)
    assert len(split.train) + len(split.test) == 52
    told = "\n".join(split.notes)
    assert "r.jsonl: 50 of 153 rated texts have no partner; one is another text" in told
    assert "r.jsonl: 1 pairs of rated texts that read the same, left out" in told
    split, _ = sources.comparisons(rated(tmp_path, paired), 0)
    assert len(split.notes) == 1


@pytest.mark.parametrize("text", ["text {}", "the same"])
def test_ratings_that_give_no_pair_are_an_error_before_the_first_stage(text: str, tmp_path: Path) -> None:
    grouped = text != "the same"
    ratings = [Rating(text.format(i), float(i), None, f"g {i}" if grouped else None) for i in range(60)]
    config = rated(tmp_path, ratings, prompt="write")
    for use in (lambda: sources.read(config, "comparisons", 0), lambda: sources.comparisons(config, 0, tmp_path / "s")):
        with pytest.raises(DataError, match="r.jsonl: none of its rated texts has a partner"):
            use()
    assert not list((tmp_path / "s").iterdir())


def test_a_side_needs_a_pair_and_not_only_a_text(tmp_path: Path) -> None:
    """Texts alone in the test part do not make one."""
    from data.splits import is_test

    groups = [f"g {i}" for i in range(60)]
    ratings = [
        Rating(f"{group} {i}", float(i), None, group)
        for group in groups
        for i in range(1 if is_test(Prompt(group), 0.3) else 2)
    ]
    with pytest.raises(DataError, match="data.comparisons: no example in the test part"):
        sources.read(rated(tmp_path, ratings, prompt="write"), "comparisons", 0)
