"""Drift between batches of votes: what is measured, what is named, and what is not."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data.drift.batches import Batched, seconds_of
from data.drift.permutation import Lots, difference_p, holm
from data.drift.preferences import Features, fit, margins, surplus
from data.drift.report import Options, drift_of
from data.drift.same_pairs import Answers, compare
from data.drift.table import gather
from data.formats import as_record
from data.quality.votes import Vote
from launch.cli import app
from rlhf.errors import ConfigError, DataError, RLHFError
from rlhf.types import Comparison, Prompt
from tests.drifting import RUDE, simulate


def test_a_batch_of_other_preferences_is_named_and_no_other(tmp_path: Path) -> None:
    found = drift_of(gather(simulate(3, 600, RUDE)), Options())
    assert {(batch.name, change.measure) for batch, change in found.drifted} == {
        ("batch 4", "preferences"),
        ("batch 4", "same pairs"),
    }
    change = next(change for batch, change in found.drifted if change.measure == "preferences")
    assert change.before is not None and change.after.expected is not None
    assert change.after.interval[1] < min(change.before.interval[0], change.after.expected)
    assert not drift_of(gather(simulate(3, 200)), Options()).drifted


def test_habits_are_named_by_what_they_are() -> None:
    found = drift_of(gather(simulate(1, 400, ties=0.25)), Options())
    assert [(batch.name, change.measure) for batch, change in found.drifted] == [("batch 4", "ties")]
    (_, change), *_ = found.drifted
    assert change.same_annotators == pytest.approx((0.1, 0.25), abs=0.05)


def test_harder_pairs_are_no_other_preferences() -> None:
    """Of pairs with smaller differences fewer votes can be predicted, and that is expected of them."""
    draw = np.random.default_rng(0)
    weights = np.array([1.0, -0.5, 0.0])
    differences = draw.normal(size=(3000, 3)) * np.where(np.arange(3000) < 2000, 2.0, 0.5)[:, None]
    wins = draw.random(3000) < 1 / (1 + np.exp(-differences @ weights))
    chosen = np.where(wins, 1, -1)[:, None] * differences
    before = np.arange(3000) < 2000
    margin = margins(Features(chosen, 3, np.arange(3000) % 5), before, np.ones(3000, bool))
    right = margin > 0
    assert right[before].mean() - right[~before].mean() > 0.15
    after = ~before
    assert difference_p(surplus(margin), np.arange(3000), after, 2000) > 0.05
    assert difference_p(right.astype(float), np.arange(3000), after, 2000) < 0.01


def test_the_fit_is_where_the_posterior_is_flat() -> None:
    draw = np.random.default_rng(1)
    differences, precision = draw.normal(size=(200, 4)) + 0.3, np.array([11.0, 11.0, 100.0, 100.0])
    weights = fit(differences, precision)
    gradient = (differences * (1 / (1 + np.exp(differences @ weights)))[:, None]).sum(axis=0) - precision * weights
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_no_vote_is_predicted_by_one_on_its_prompt() -> None:
    features = Features(np.eye(10), 10, np.arange(10) % 5)  # each vote's feature is its fold's and one other's alone
    margin = margins(features, np.ones(10, bool), np.arange(10) < 9)
    np.testing.assert_array_equal(margin[:9], 0.0)
    assert math.isnan(margin[9])


def test_p_is_the_share_of_all_ways_to_deal_prompts_out() -> None:
    """By definition: prompts with their votes, every choice of as many of them."""
    values = np.array([0.0, 4.0, 1.7, 2.7, 1.7, 2.1, 3.2, 0.8, 3.0, 2.6, 6.1])
    prompt = np.repeat(np.arange(7), [2, 1, 1, 3, 1, 2, 1])
    after = np.isin(prompt, [3, 4])

    def studentised(chosen: np.ndarray) -> float:
        sides = []
        for side in (chosen, ~chosen):
            mean, lots = values[side].mean(), np.unique(prompt[side])
            rest = [(values[prompt == lot] - mean).sum() for lot in lots]
            sides.append((mean, sum(r**2 for r in rest) / side.sum() ** 2))
        return abs(sides[0][0] - sides[1][0]) / math.sqrt(sides[0][1] + sides[1][1])

    ways = [studentised(np.isin(prompt, way)) for way in itertools.combinations(range(7), 2)]
    exact = np.mean([way >= studentised(after) - 1e-9 for way in ways])
    found = np.mean([difference_p(values, prompt, after, 2000, seed) for seed in range(30)])
    assert found == pytest.approx(exact, rel=0.15) and exact < 0.3


def test_of_a_prompt_in_both_its_two_lots_change_places() -> None:
    """Ten prompts, each higher after by the same: of 2^10 ways two are as extreme."""
    prompt, after = np.repeat(np.arange(10), 2), np.arange(20) % 2 == 1
    values = np.repeat(np.arange(10.0), 2) + 0.5 * after
    assert difference_p(values, prompt, after, 20_000) == pytest.approx(2 / 2**10, rel=0.5)
    assert difference_p(np.ones(20), prompt, after, 100) == 1.0


def test_votes_on_one_prompt_are_no_independent_ones() -> None:
    """Votes that only repeat each other widen the interval, to that of their prompts."""
    draw = np.random.default_rng(2)
    once = (draw.random(50) < 0.4).astype(float)
    alone = Lots.of(once, np.arange(50)).share_interval()
    repeated = Lots.of(np.repeat(once, 20), np.repeat(np.arange(50), 20)).share_interval()
    assert repeated == pytest.approx(alone, abs=0.02)


def test_the_same_pairs_voted_otherwise_are_found_and_harder_ones_are_not() -> None:
    draw = np.random.default_rng(3)
    pair, after = np.repeat(np.arange(60), 4), np.tile([False, False, True, True], 60)
    truth = np.repeat(draw.integers(0, 2, 60), 4)
    noisy = np.where(draw.random(240) < 0.25, 1 - truth, truth)
    people = np.tile([0, 1, 0, 2], 60)  # the first of them in both
    steady = compare(Answers(pair, people, noisy), after, 2000)
    turned = compare(Answers(pair, people, np.where(after & (pair < 50), 1 - noisy, noisy)), after, 2000)
    assert steady is not None and steady.p is not None and steady.p > 0.05
    assert turned is not None and turned.p is not None and turned.p < 0.005
    assert turned.within is not None and turned.between.mean < turned.within.mean - 0.1
    unnamed = np.full(2, -1)
    assert compare(Answers(np.arange(2), unnamed, np.zeros(2, int)), np.array([False, True]), 10) is None
    single = compare(Answers(np.array([0, 0]), unnamed, np.array([0, 1])), np.array([False, True]), 10)
    assert single is not None and single.p is None and single.between.mean == 0.0


def test_same_pairs_are_counted_as_by_hand() -> None:
    """One pair: ann twice before (the last counts) and once after, bob before, cid and somebody unnamed after."""
    annotator, answer = np.array([0, 0, 1, 0, 2, -1]), np.array([1, 0, 0, 0, 1, 0])
    votes, after = Answers(np.zeros(6, int), annotator, answer), np.array([0, 0, 0, 1, 1, 1], bool)
    found = compare(votes, after, 10)
    assert found is not None and found.within is not None
    assert (found.within.count.sum(), found.within.sum.sum()) == (1 + 3, 1 + 1)  # ann and bob; three after
    assert (found.between.count.sum(), found.between.sum.sum()) == (2 * 3 - 1, 3)  # all but ann with herself
    own = Answers(np.zeros(2, int), np.zeros(2, int), np.zeros(2, int))
    assert compare(own, np.array([False, True]), 10) is None  # a person alone


def test_pairs_of_two_votes_are_too_few_for_a_test() -> None:
    """Twenty pairs of three votes are needed, however many of two there are."""
    for many, tested in ((19, False), (20, True)):
        pair = np.concatenate([np.repeat(np.arange(many), 3), np.repeat(np.arange(many, 60), 2)])
        after = np.concatenate([np.tile([False, False, True], many), np.tile([False, True], 60 - many)])
        found = compare(Answers(pair, np.full(len(pair), -1), pair % 2), after, 50)
        assert found is not None and (found.p is not None) == tested


def opinionated(seed: int, casts: list[str | None]) -> list[Batched]:
    """Sixty pairs; each person has one opinion of each. casts: batches, and who of six people votes; None: any two."""
    draw, made = random.Random(seed), []
    for pair in range(60):
        chance, people = draw.uniform(0.5, 0.9), draw.sample("abcdef", 6)
        likes = {who: draw.random() < chance for who in people}
        for batch, cast in enumerate(casts):
            for who in cast or draw.sample("abcdef", 2):
                who = people[int(who)] if who.isdigit() else who
                sides = ("one", "other") if likes[who] else ("other", "one")
                known = Comparison(Prompt(f"{pair}"), *sides, annotator=who)
                made.append((f"{batch}", Vote(f"{len(made)}", known, held_out=False)))
    return made


@pytest.mark.parametrize("casts", [["0", "0", "1"], ["0", "0", "12"], [None, None, None]])
def test_who_agrees_with_themselves_feigns_no_drift(casts: list[str | None]) -> None:
    """Batch after batch has votes of the same people on the same pairs, and nobody's mind changes."""
    found = [drift_of(gather(opinionated(seed, casts)), Options()) for seed in range(8)]
    assert sum(bool(each.drifted) for each in found) <= 1
    tested = [change.p for each in found for change in each.batches[2].changes if change.measure == "same pairs"]
    assert len(tested) == 8 and (casts[0] == "0" or None not in tested)


def test_holm_by_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []


def ask(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "drift", *map(str, arguments)])
    if isinstance(done.exception, RLHFError):
        raise done.exception
    return done.exit_code, done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("batches")
    lines: dict[str, list[str]] = {}
    for name, vote in simulate(3, 200, ties=0.4):
        lines.setdefault(name, []).append(json.dumps({**as_record(vote.comparison), "round": name}))
    paths = [folder / f"{name.replace(' ', '-')}.jsonl" for name in lines]
    for path, votes in zip(paths, lines.values(), strict=True):
        path.write_text("\n".join(votes) + "\n")
    (folder / "all.jsonl").write_text("".join(path.read_text() for path in paths))
    return [*paths, folder / "all.jsonl"]


def test_programs_read_what_has_drifted(files: list[Path], tmp_path: Path) -> None:
    code, told = ask(*files[:4], "--json", "--picture", tmp_path / "drift.png")
    found = json.loads(told)
    assert code == 3 and found["drift"] is True and found["drifted"] == ["batch-4"]
    assert [batch["name"] for batch in found["batches"]] == [path.stem for path in files[:4]]
    ties = next(change for change in found["batches"][3]["changes"] if change["measure"] == "ties")
    assert ties["drifted"] and ties["adjusted"] < 0.05 and ties["before"]["value"] < ties["after"]["value"]
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_batches_by_field_and_by_time_are_those_of_files(files: list[Path]) -> None:
    _, of_files = ask(*files[:4], "--json")
    _, of_field = ask(files[4], "--batch-field", "round", "--json")
    _, of_time = ask(files[4], "--every", "1d", "--json")
    told = [json.loads(text)["batches"] for text in (of_files, of_field, of_time)]
    assert [batch["name"] for batch in told[1]] == [f"batch {i}" for i in range(1, 5)]
    assert [batch["name"] for batch in told[2]] == ["2023-11-14", "2023-11-15", "2023-11-16", "2023-11-17"]
    assert told[0][3]["changes"] == told[1][3]["changes"]


def test_people_read_what_has_changed_or_that_nothing_has(files: list[Path]) -> None:
    code, told = ask(*files[:4])
    assert code == 3 and "batch-4: ties (of all votes): " in told and "\x1b" not in told
    code, told = ask(*files[:3])
    assert code == 0 and "no drift: " in told


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--every", "7"], "--every='7': is no stretch of time; write hours, days or weeks: 12h, 7d, 2w"),
        (["--every", "0d"], "is no stretch of time"),
        (["--every", "7d", "--batch-field", "round"], "cannot both say what a batch is"),
        (["--against", "after"], "--against=after: not known; choose before or others"),
        (["--level", "0"], "--level=0: is no probability"),
        (["--picture", "drift.jpg"], "--picture=drift.jpg: its name must end in .png"),
    ],
)
def test_wrong_options_end_before_anything_is_read(arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ask("missing.jsonl", *arguments)


def test_what_is_no_batch_is_told(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one batch \(batch-1\): nothing to compare"):
        ask(files[0])
    with pytest.raises(DataError, match=r"batch-1.jsonl:1: no field 'week' that names its batch"):
        ask(*files[:2], "--batch-field", "week")
    with pytest.raises(DataError, match="a file is given twice"):
        ask(files[0], files[0])
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps(as_record(Comparison(Prompt("p"), "a", "b"))) + "\n")
    with pytest.raises(DataError, match=r"bare.jsonl:1: no time; add it"):
        ask(bare, "--every", "1d")
    bare.write_text(bare.read_text() + '{"prompt": "p", "chosen": 3, "rejected": "b"}\n')
    with pytest.raises(DataError, match=r"bare.jsonl:2: chosen=3 is not a text.*--drop-bad"):
        ask(bare, files[0])
    assert seconds_of("2w") == 14 * 86_400


def test_few_votes_are_shown_and_not_tested(tmp_path: Path) -> None:
    for name in ("one", "two"):
        votes = [Comparison(Prompt(f"{name} {i}"), "a b", "c") for i in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(as_record(vote)) + "\n" for vote in votes))
    code, told = ask(tmp_path / "one.jsonl", tmp_path / "two.jsonl", "--json")
    found = json.loads(told)
    assert code == 0 and found["tests"] == 0
    assert {change["measure"]: change["p"] for change in found["batches"][1]["changes"]} == {
        "ties": None,
        "longer wins": None,
    }
