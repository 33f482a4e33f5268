"""Examples on disk, splits and mixtures of indices, pairs of rated texts, and sources made of all that."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import sources, toy
from data.formats import Example, as_record, write_jsonl
from data.mapped import ROWS, MappedExamples, Selection, identities_of, write_examples
from data.mixtures import deciding, part_of, split_parts, weighted
from data.ratings import Pairing, Rating
from data.splits import held_out, is_test, side_of, split_prompts
from rlhf.config import DataConfig, SourceConfig
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Message, Prompt

TURNS = Prompt((Message("system", "s"), Message("user", "\x00 日本 \u2028 😀"), Message("assistant", "")))
EXAMPLES: dict[str, list[Any]] = {
    "prompts": [Prompt("p"), TURNS],
    "demonstrations": [Demonstration(Prompt("p"), " c\n"), Demonstration(TURNS, "c")],
    "comparisons": [
        Comparison(Prompt("p"), "a", "b"),
        Comparison(TURNS, "", "b", True, "ann", 0.1, False, 1e-3, False, False),
    ],
    "ratings": [Rating("t", 0.1), Rating("t", -1.0, TURNS, "g", "ann")],
}


def stored(path: Path, examples: list[Any], kind: str) -> MappedExamples[Any]:
    account = write_examples(path, ((example, deciding(example)) for example in examples), lambda: ["a note"])
    assert (account["rows"], account["notes"]) == (len(examples), ["a note"])
    return MappedExamples(path, kind)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_what_is_written_is_mapped(kind: str, tmp_path: Path) -> None:
    mapped = stored(tmp_path / "x.arrow", EXAMPLES[kind], kind)
    assert list(mapped) == [mapped[i] for i in range(len(mapped))] == EXAMPLES[kind]
    assert mapped.sides.tolist() == [side_of(deciding(example)) for example in EXAMPLES[kind]]
    assert (mapped.identities() == identities_of(EXAMPLES[kind])).all()
    assert {path.name for path in tmp_path.iterdir()} == {"x.arrow", "x.json"}


def test_a_mapped_file_is_a_sequence_over_batches(tmp_path: Path) -> None:
    prompts = [Prompt(f"{i}") for i in range(2 * ROWS + 3)]
    mapped = stored(tmp_path / "x.arrow", prompts, "prompts")
    assert len(mapped) == len(prompts) and list(mapped) == prompts
    for i in (0, ROWS - 1, ROWS, 2 * ROWS + 2, -1, -len(prompts)):
        assert mapped[i] == prompts[i]
    assert mapped[ROWS - 2 : ROWS + 2] == prompts[ROWS - 2 : ROWS + 2]
    for i in (len(prompts), -len(prompts) - 1):
        with pytest.raises(IndexError):
            mapped[i]
    assert (mapped.identities() == identities_of(prompts)).all()
    for path in tmp_path.iterdir():
        path.unlink()
    assert list(mapped) == prompts  # the map outlives its file


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Any:
        for i in range(2 * ROWS):
            yield Prompt(f"{i}"), f"{i}"
        raise DataError("no more")

    with pytest.raises(DataError):
        write_examples(tmp_path / "x.arrow", broken(), list)
    assert list(tmp_path.iterdir()) == []


def test_a_selection_is_a_sequence() -> None:
    selection = Selection([["a", "b"], [], ["c"]], np.array([2, 0, 2, 1]))
    assert list(selection) == ["c", "a", "c", "b"] == [selection[i] for i in range(4)]
    assert selection[-1] == "b" and list(selection[1:3]) == ["a", "c"] and len(selection) == 4
    with pytest.raises(IndexError):
        selection[4]
    assert not Selection([[]], np.empty(0, np.int64))


@given(st.lists(st.integers(0, 2**64 - 1)), st.floats(0.001, 0.999))
@example([2**63 - 1024, 2**63 - 1, 2**63], 0.5)
def test_the_side_is_the_same_for_one_and_for_many(sides: list[int], fraction: float) -> None:
    assert held_out(np.array(sides, np.uint64), fraction).tolist() == [side / 2**64 < fraction for side in sides]


texts = st.lists(st.text(max_size=2), max_size=20)


@given(st.lists(texts, min_size=1, max_size=4), st.floats(0.01, 0.99), st.booleans())
@settings(deadline=None, max_examples=60)
def test_sources_split_as_one_list_does(parts: list[list[str]], fraction: float, unique: bool) -> None:
    together = [Prompt(text) for part in parts for text in part]
    split = split_parts([part_of([Prompt(text) for text in part]) for part in parts], fraction, 0, unique=unique)
    if unique:
        together = list(dict.fromkeys(together))
    assert list(split.train) == [prompt for prompt in together if not is_test(prompt, fraction)]
    assert list(split.test) == [prompt for prompt in together if is_test(prompt, fraction)]


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.01, 100)), min_size=1, max_size=5), st.integers(0, 9))
@settings(deadline=None)
def test_a_mixture_has_whole_passes_and_a_drawn_rest(sources_: list[tuple[int, float]], seed: int) -> None:
    starts = np.cumsum([0, *(size for size, _ in sources_)])
    indices = [np.arange(size) + start for (size, _), start in zip(sources_, starts, strict=False)]
    weights = [weight for _, weight in sources_]
    mixed = weighted(indices, weights, seed)
    total, alive = int(starts[-1]), sum(weight for size, weight in sources_ if size)
    assert sum(map(len, mixed)) == total
    for own, drawn, weight in zip(indices, mixed, weights, strict=True):
        if len(own):
            assert abs(len(drawn) - total * weight / alive) < 1 + 1e-6
            counts = Counter(drawn.tolist())
            assert set(counts) <= set(own.tolist())
            passes = len(drawn) // len(own)
            assert all(passes <= counts[index] <= passes + 1 for index in own.tolist())
        else:
            assert not len(drawn)
    assert all((a == b).all() for a, b in zip(mixed, weighted(indices, weights, seed), strict=True))


def config(tmp_path: Path, kind: str, *options: dict[str, Any]) -> DataConfig:
    return DataConfig(directory=str(tmp_path), **{kind: [SourceConfig(**option) for option in options]})  # type: ignore[arg-type]


def prompts_file(tmp_path: Path, name: str, count: int) -> None:
    write_jsonl(tmp_path / name, [Prompt(f"{name} {i}") for i in range(count)])


def test_weights_mix_the_training_part_alone(tmp_path: Path) -> None:
    prompts_file(tmp_path, "a.jsonl", 300)
    prompts_file(tmp_path, "b.jsonl", 100)
    plain = sources.prompts(config(tmp_path, "prompts", {"path": "a.jsonl"}, {"path": "b.jsonl"}), 0)
    weights = config(tmp_path, "prompts", {"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 3.0})
    mixed = sources.prompts(weights, 0)
    assert len(mixed.train) == len(plain.train) and list(mixed.test) == list(plain.test)
    share = Counter(prompt.text.split(".")[0] for prompt in mixed.train)
    assert abs(share["b"] / len(mixed.train) - 0.75) < 0.01
    assert list(mixed.train) == list(sources.prompts(weights, 0).train)
    assert list(mixed.train) != list(sources.prompts(weights, 1).train)
    assert not {prompt.text for prompt in mixed.train} & {prompt.text for prompt in mixed.test}


def test_the_embedded_task_is_what_it_was() -> None:
    """Through indices come the very examples that its own functions make."""
    parts = split_prompts(toy.prompts(), 0.1)
    split = sources.demonstrations(DataConfig(demonstrations=[SourceConfig(path="toy", count=50, held_out=9)]), 3)
    assert list(split.train) == toy.demonstrations(50, 3, parts.train)
    assert list(split.test) == toy.demonstrations(9, 3, parts.test)
    votes, accuracy = sources.comparisons(DataConfig(comparisons=[SourceConfig(path="toy", count=50, held_out=9)]), 3)
    kept_out = toy.comparisons(9, 3, parts.test)
    assert list(votes.train) == toy.comparisons(50, 3, parts.train).records
    assert (list(votes.test), accuracy) == (kept_out.records, kept_out.bayes_accuracy)
    prompts = sources.prompts(DataConfig(), 3)
    assert (list(prompts.train), list(prompts.test)) == (parts.train, parts.test)


def test_prompts_come_once_over_all_sources(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [Prompt(f"{i % 50}") for i in range(100)])
    write_jsonl(tmp_path / "b.jsonl", [Prompt(f"{i}") for i in range(60)])
    split = sources.prompts(config(tmp_path, "prompts", {"path": "a.jsonl"}, {"path": "b.jsonl"}), 0)
    assert sorted(int(prompt.text) for part in (split.train, split.test) for prompt in part) == list(range(60))


def test_half_a_hash_does_not_make_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = np.array([[1, 2], [1, 3], [4, 2], [1, 2]], np.uint64)
    monkeypatch.setattr("data.mixtures.identities_of", lambda examples: halves)
    split = split_parts([part_of([Prompt(text) for text in "abcd"])], 1e-9, 0, unique=True)
    assert [prompt.text for prompt in split.train] == ["a", "b", "c"]


def test_scratch_is_used_again_unless_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts_file(tmp_path, "a.jsonl", 100)
    scratch = tmp_path / "scratch"
    options = config(tmp_path, "prompts", {"path": "a.jsonl"})
    first = sources.prompts(options, 0, scratch)
    written = {path.name: path.stat().st_mtime_ns for path in scratch.iterdir()}
    again = sources.prompts(options, 0, scratch)
    assert {path.name: path.stat().st_mtime_ns for path in scratch.iterdir()} == written
    assert (list(again.train), list(again.test), again.notes) == (list(first.train), list(first.test), first.notes)
    assert "a.jsonl: format prompt (detected), 100 records, 100 prompts" in first.notes
    prompts_file(tmp_path, "a.jsonl", 90)
    changed = sources.prompts(options, 0, scratch)
    assert len(changed.train) + len(changed.test) == 90
    dropped = config(tmp_path, "prompts", {"path": "a.jsonl", "count": 80})
    changed = sources.prompts(dropped, 0, scratch)
    assert len(changed.train) + len(changed.test) == 80


def test_nothing_is_left_behind_without_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    prompts_file(tmp_path, "a.jsonl", 100)
    split = sources.prompts(config(tmp_path, "prompts", {"path": "a.jsonl"}), 0)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert len(list(split.train)) + len(split.test) == 100


def test_what_a_source_holds_is_in_its_hash(tmp_path: Path) -> None:
    prompts_file(tmp_path, "a.jsonl", 10)
    base = {"path": "a.jsonl"}
    changes: list[dict[str, Any]] = [
        {},
        {"format": "prompt"},
        {"weight": 2.0},
        {"bad_records": "drop"},
        {"prompt": "q"},
    ]
    hashes = {sources.content_hash(config(tmp_path, "prompts", base | change), "prompts") for change in changes}
    assert len(hashes) == len(changes)
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert sources.content_hash(config(tmp_path, "prompts", {"path": "copy.jsonl"}), "prompts") in hashes


def test_reading_ahead_finds_all_that_is_wrong(tmp_path: Path) -> None:
    prompts_file(tmp_path, "good.jsonl", 100)
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1}\n')
    sources.read(config(tmp_path, "prompts", {"path": "good.jsonl"}), "prompts", 0)
    with pytest.raises(DataError) as caught:
        sources.read(config(tmp_path, "prompts", {"path": "bad.jsonl"}, {"path": "nix.jsonl"}), "prompts", 0)
    assert len(caught.value.problems) == 2
    prompts_file(tmp_path, "one.jsonl", 1)
    with pytest.raises(DataError, match="data.prompts: no example in the test part"):
        sources.read(config(tmp_path, "prompts", {"path": "one.jsonl"}), "prompts", 0)
    # A small source beside a large one need not have both parts.
    sources.read(config(tmp_path, "prompts", {"path": "one.jsonl"}, {"path": "good.jsonl"}), "prompts", 0)


def test_every_rated_text_is_in_one_pair_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {f"text {i}": float(rng.integers(0, 5)) for i in range(401)}
    write_jsonl(tmp_path / "r.jsonl", [Rating(text, score) for text, score in scores.items()])
    rated = config(tmp_path, "comparisons", {"path": "r.jsonl", "prompt": "write"})
    split, _ = sources.comparisons(rated, 0)
    used: Counter[str] = Counter()
    for part, held in ((split.train, False), (split.test, True)):
        for comparison in part:
            texts = (comparison.chosen, comparison.rejected)
            used.update(texts)
            assert comparison.prompt == Prompt("write")
            assert scores[texts[0]] >= scores[texts[1]]
            assert comparison.tie == (scores[texts[0]] == scores[texts[1]])
            assert [is_test(Prompt(text), 0.1) for text in texts] == [held, held]
    assert set(used.values()) == {1} and len(used) >= 399
    assert len(split.test) > 10
    assert list(sources.comparisons(rated, 0)[0].train) == list(split.train)
    assert list(sources.comparisons(rated, 1)[0].train) != list(split.train)


def test_rated_texts_of_a_group_are_compared_with_each_other_alone() -> None:
    one = [Rating(text, score, Prompt("p"), "p", "x") for text, score in (("a", 1.0), ("b", 3.0), ("c", 3.0))]
    other = [Rating("a", 9.0, Prompt("p"), "p", "y"), Rating("d", 1.0, Prompt("q"), "q", "x"), one[0]]
    pairing = Pairing([*one, *other], [False] * 6, None, 0)
    found = [comparison for comparison, _ in pairing]
    assert len(found) == 5  # a pair of equal texts is none
    assert (pairing.pairs, pairing.alone, pairing.same) == (5, 2, 1)
    assert {(c.chosen, c.rejected, c.tie, c.annotator) for c in found} == {
        ("b", "a", False, "x"),
        ("c", "a", False, "x"),
        ("b", "c", True, "x"),
    }


def test_texts_that_read_the_same_are_not_paired() -> None:
    ratings = [Rating("a", 1.0), Rating("a", 2.0), Rating("b", 3.0), Rating("a", 1.0), Rating("b", 0.0)]
    pairing = Pairing(ratings, [False] * 5, "q", 0)
    found = [comparison for comparison, _ in pairing]
    assert len(found) == 2 and all({c.chosen, c.rejected} == {"a", "b"} for c in found)
    assert (pairing.pairs, pairing.alone, pairing.same) == (2, 1, 0)
    assert list(Pairing([], [], "q", 0)) == []


def test_records_of_every_kind_pass_through_a_source(tmp_path: Path) -> None:
    made: dict[str, list[Example]] = {
        "demonstrations": [Demonstration(Prompt(f"{i}"), "c") for i in range(50)],
        "comparisons": [Comparison(Prompt(f"{i}"), "a", "b", time=i / 4 if i % 2 else None) for i in range(50)],
    }
    for kind, examples in made.items():
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(json.dumps(as_record(example)) for example in examples))
        drawn = getattr(sources, kind)(config(tmp_path, kind, {"path": f"{kind}.jsonl"}), 0)
        split = drawn[0] if kind == "comparisons" else drawn
        assert [e for e in examples if e in list(split.train)] == list(split.train)
        assert len(split.train) + len(split.test) == 50
