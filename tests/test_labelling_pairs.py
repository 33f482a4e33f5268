"""Pairs to label: whence they come, their order, their sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from labelled import PAIR, pairs_of, write

from data.labelling.ledger import Ledger, directory_of, first_is_a
from data.labelling.order import ordered
from data.labelling.pairs import Pair, read_gold, read_pairs
from data.labelling.sampled import pairs_of_run
from rlhf.errors import ArtifactError, DataError
from rlhf.store.samples import conversations, write_samples
from rlhf.types import Message, Prompt


def test_pairs_come_from_votes_and_from_responses(tmp_path: Path) -> None:
    votes = write(
        tmp_path / "votes.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b", "category": "x"},
        {"prompt": "p", "chosen": "b", "rejected": "a", "category": "x"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "votes": [{"prefers": "tie"}, {"prefers": "rejected"}]},
    )
    sampled = write(
        tmp_path / "sampled.jsonl",
        {"prompt": "r", "responses": ["a", "b", "c"], "finished": [True, False, True]},
        {"prompt": "s", "responses": ["a", "a"]},
    )
    equal = write(
        tmp_path / "equal.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    )
    assert (read_pairs([equal]).identical, read_pairs([equal]).bad) == (1, [])
    pairs = read_pairs([votes, sampled], kind_field="category")
    found = [(pair.prompt.text, pair.first, pair.second, pair.kind, pair.answer) for pair in pairs.found.values()]
    assert found[:2] == [("p", "a", "b", "x", None), ("q", "a", "b", None, None)]
    assert [row[1:3] for row in found[2:]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.second_finished for pair in pairs.found.values()] == [True, True, False, True, True]
    assert (pairs.repeated, pairs.identical) == (2, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "p"},
        {"prompt": "p", "responses": ["a"]},
        {"prompt": "p", "responses": "ab"},
        {"prompt": "p", "responses": ["a", 3]},
        {"prompt": "", "responses": ["a", "b"]},
        {"prompt": "p", "responses": ["a", "b"], "finished": [True]},
        {"prompt": "p", "responses": ["a", "b"], "kind": 1.5},
    ],
)
def test_bad_records_are_named_or_dropped_and_counted(bad: dict[str, Any], tmp_path: Path) -> None:
    good = {"prompt": "p", "responses": ["a", "b"]}
    name = write(tmp_path / "sampled.jsonl", good, bad)
    with pytest.raises(DataError, match=r"sampled.jsonl:2: .*; mend or remove it, or give --drop-bad"):
        read_pairs([name])
    pairs = read_pairs([name], drop_bad=True)
    assert len(pairs.found) == 1 and len(pairs.bad) == 1


def test_gold_pairs_need_one_answer(tmp_path: Path) -> None:
    good = write(
        tmp_path / "gold.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "tie": True},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    )
    assert [pair.answer for pair in read_gold([good]).found.values()] == ["first", "tie"]
    for name, other in (("two", {"prompt": "p", "chosen": "b", "rejected": "a"}), ("none", None)):
        records = [{"prompt": "p", "chosen": "a", "rejected": "b"}, other] if other else []
        path = write(tmp_path / f"{name}.jsonl", *(records or [{"prompt": "p", "responses": ["a", "b"]}]))
        with pytest.raises(DataError, match=r"jsonl:1: a gold pair needs one answer"):
            read_gold([path])


def test_any_beginning_of_the_order_has_kinds_and_gold_in_proportion() -> None:
    pairs = pairs_of("x", 300) + pairs_of("y", 100) + pairs_of(None, 100)
    gold = [replace(pair, answer="first") for pair in pairs_of("gold", 80)]
    found = ordered(pairs, gold, seed=3, count=None, share=0.1)
    assert len(found) == 500 + 56 and len({pair.id for pair in found}) == 556
    for end in (50, 111, 278):
        kinds = Counter(pair.kind if pair.answer is None else "gold" for pair in found[:end])
        for kind, share in (("x", 300 / 556), ("y", 100 / 556), (None, 100 / 556), ("gold", 56 / 556)):
            assert abs(kinds[kind] - end * share) <= 2, (end, kind)
    assert [pair.id for pair in ordered(reversed(pairs), gold, 3, None, 0.1)] == [pair.id for pair in found]
    assert Counter(pair.kind for pair in ordered(pairs, [], 3, 50, 0.0)) == {"x": 30, "y": 10, None: 10}


def test_a_gold_pair_that_stands_among_the_others_is_gold(tmp_path: Path) -> None:
    (pair,) = pairs_of("x", 1)
    assert [each.answer for each in ordered([pair], [replace(pair, answer="tie")], 0, None, 0.5)] in ([], ["tie"])


def test_sides_are_even_and_depend_on_seed_and_pair_alone() -> None:
    pairs = pairs_of("x", 4000)
    left = sum(first_is_a(pair.id, 1) for pair in pairs)
    assert 1870 < left < 2130  # four standard deviations
    assert 1870 < sum(first_is_a(pair.id, 1) == first_is_a(pair.id, 2) for pair in pairs) < 2130
    swapped = replace(pairs[0], first=pairs[0].second, second=pairs[0].first)
    assert swapped.id == pairs[0].id and len({pair.id for pair in pairs}) == 4000


def test_a_ledger_reads_back_and_keeps_sides(tmp_path: Path) -> None:
    turns = Prompt((Message("system", "be kind"), Message("user", "hi")))
    pairs = [replace(PAIR, answer="first", origin="a.jsonl:1"), Pair(turns, "hello", "", kind="chat")]
    ledger = Ledger(tmp_path)
    made = ledger.add(pairs, seed=4)
    assert Ledger.open(tmp_path).entries == ledger.entries
    assert made[1].data()["prompt"] == "System: be kind\n\nUser: hi"
    swapped = replace(PAIR, first=PAIR.second, second=PAIR.first, answer="first")
    (again,) = Ledger.open(tmp_path).add([swapped], seed=5)
    assert again.first_is_a == made[0].first_is_a and again.pair.first == PAIR.first and again.pair.answer == "second"
    (tmp_path / "ledger.jsonl").write_text((tmp_path / "ledger.jsonl").read_text().replace("because", "be cause"))
    with pytest.raises(
        ArtifactError,
        match=r"ledger.jsonl: damaged .*; remove it, then push the same files again, with the same --gold",
    ):
        Ledger.open(tmp_path)
    assert directory_of("Demo, round 1!") == Path("labels/demo-round-1") and directory_of("ЖЖЖ") == Path("labels/жжж")


# What a run has sampled.


def test_a_run_s_samples_come_with_their_turns_and_ends(tmp_path: Path) -> None:
    chat = Prompt((Message("user", "hi"), Message("assistant", "ho"), Message("user", "why ?")))
    prompts = [chat, Prompt("plain")]
    rows: Sequence[dict[str, Any]] = [
        {"prompt": p.text, "before": "b", "after": f"a{n}", "before_finished": True, "after_finished": n == 0}
        | {name: column[n] for name, column in conversations(prompts).items()}
        for n, p in enumerate(prompts)
    ]
    write_samples(tmp_path / "evaluate/samples/side-by-side-000000.parquet", rows)
    found = list(pairs_of_run(tmp_path).found.values())
    assert [pair.prompt for pair in found] == prompts
    assert [(p.first, p.second, p.second_finished) for p in found] == [("b", "a0", True), ("b", "a1", False)]
    assert conversations([Prompt("plain")]) == {}
    with pytest.raises(ArtifactError, match="ppo/samples: no samples of two policies"):
        pairs_of_run(tmp_path, "ppo")
    old = [{name: value for name, value in rows[0].items() if not name.endswith("_finished")}]
    write_samples(tmp_path / "evaluate/samples/side-by-side-000000.parquet", old)
    with pytest.raises(ArtifactError, match="has no column before_finished; run the stage again"):
        pairs_of_run(tmp_path)


def test_held_out_samples_of_two_steps_are_pairs(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        rows = [{"index": n, "prompt": f"p{n}", "response": f"r{n if n else step}", "finished": True} for n in range(3)]
        write_samples(tmp_path / f"ppo/samples/held-out-{step:06d}.parquet", rows)
    pairs = pairs_of_run(tmp_path)
    assert [(p.first, p.second) for p in pairs.found.values()] == [("r0", "r20")] and pairs.identical == 2
