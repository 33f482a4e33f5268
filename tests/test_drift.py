"""Drift between batches of votes: what is measured, what is named, and what is not."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data.drift import report
from data.drift.batches import Batched, by_time, seconds_of
from data.drift.permutation import Lots, difference_p, holm
from data.drift.preferences import Features, fit, margins, surplus
from data.drift.report import Options, drift_of
from data.drift.table import gather, in_order
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


def test_holm_by_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []


def placed(batch: str, number: int, chosen: str = "a", time: float | None = None, who: str | None = None) -> Batched:
    """A vote on the only pair of a prompt."""
    known = Comparison(Prompt(f"{number}"), chosen, "b" if chosen == "a" else "a", time=time, annotator=who)
    return batch, Vote(f"{batch}:{number}", known, held_out=False)


def test_batches_of_a_field_are_in_order_of_time_or_of_names() -> None:
    names = ["week 10", "week 2", "week 009", "a"]
    unordered = in_order(gather(placed(name, i, time=None if i else 1.0) for i, name in enumerate(names)))
    assert unordered.names == ("a", "week 2", "week 009", "week 10")
    assert [unordered.names[i] for i in unordered.batch] == names
    times = [3.0, 9.0, 2.0, 4.0, 1.0]
    timed = in_order(gather(placed(name, i, time=times[i]) for i, name in enumerate([*names, "week 2"])))
    assert timed.names == ("week 2", "week 009", "week 10", "a")


@pytest.mark.parametrize(("times", "counts"), [((2.0, 1.0), 0), ((1.0, 2.0), 1), ((2.0, None), 1), ((1.0, 1.0), 1)])
def test_the_newest_vote_counts_by_time_or_as_read(times: tuple[float | None, float | None], counts: int) -> None:
    votes = gather(placed("one", 0, side, time, "ann") for side, time in zip("ab", times, strict=True))
    alone = gather([placed("one", 0, "ab"[counts], times[counts], "ann")])
    assert (votes.answer.tolist(), votes.repeated) == (alone.answer.tolist(), 1)
    np.testing.assert_array_equal(votes.time, alone.time)


def test_no_votes_are_told() -> None:
    with pytest.raises(DataError, match="no votes"):
        gather(by_time([], 60.0))


def test_a_level_that_no_test_can_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more ties than before; 15 tests of so many permutations."""
    votes = gather(simulate(1, 200, ties=0.6))
    monkeypatch.setattr(report, "MOST_PERMUTATIONS", 2999)
    with pytest.raises(ConfigError, match=r"--level=0.005: 15 tests of 2,999 permutations .* give one above 0.005,"):
        drift_of(votes, Options(level=0.005))
    assert drift_of(votes, Options(level=0.0051)).drifted


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


def test_batches_by_field_and_by_time_are_those_of_files(files: list[Path], tmp_path: Path) -> None:
    _, of_files = ask(*files[:4], "--json")
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("".join(path.read_text() for path in files[3::-1]))
    _, of_field = ask(backwards, "--batch-field", "round", "--json")
    _, of_time = ask(files[4], "--every", "1d", "--json")
    told = [json.loads(text)["batches"] for text in (of_files, of_field, of_time)]
    assert [batch["name"] for batch in told[1]] == [f"batch {i}" for i in range(1, 5)]
    assert [batch["name"] for batch in told[2]] == ["2023-11-14", "2023-11-15", "2023-11-16", "2023-11-17"]
    # The same votes read in another order: only the permutations are others.
    figures = [[(each["measure"], each["after"]["value"]) for each in batches[3]["changes"]] for batches in told[:2]]
    assert dict(figures[0]) == pytest.approx(dict(figures[1]))
    assert [each["drifted"] for each in told[0][3]["changes"]] == [each["drifted"] for each in told[1][3]["changes"]]


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
