import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixtures import part_of, split_parts
from data.splits import is_test, split_prompts
from data.votes import simulate_votes
from rlhf.types import Comparison, Completion, Demonstration, Prompt

PROMPTS = [Prompt(f"prompt {i}") for i in range(4000)]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_the_share_held_out_is_about_the_fraction(fraction: float) -> None:
    """Within four standard errors."""
    held_out = len(split_prompts(PROMPTS, fraction).test)
    assert abs(held_out / 4000 - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / 4000)


@given(st.lists(st.text(max_size=3), max_size=30), st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=50)
def test_each_prompt_is_on_one_side_once_and_in_order(texts: list[str], fraction: float) -> None:
    prompts = [Prompt(text) for text in texts]
    split = split_prompts(prompts, fraction)
    assert not set(split.train) & set(split.test)
    unique = list(dict.fromkeys(prompts))
    assert split.train == [prompt for prompt in unique if prompt in split.train]
    assert split.test == [prompt for prompt in unique if prompt in split.test]
    assert len(split.train) + len(split.test) == len(unique)


def test_more_data_and_a_larger_fraction_move_nothing_back() -> None:
    """What is held out stays so, whatever is added."""
    few, all_of_them = split_prompts(PROMPTS[:100], 0.1), split_prompts(PROMPTS, 0.1)
    assert set(few.test) == set(PROMPTS[:100]) & set(all_of_them.test) != set()
    assert set(all_of_them.test) < set(split_prompts(PROMPTS, 0.2).test)


def test_records_follow_their_prompts_in_whatever_form() -> None:
    """A conversation of one turn and a plain text are one prompt; repeats of records stay."""
    for make in (lambda p: Demonstration(p, "c"), lambda p: Comparison(p, "a", "b")):
        records = [make(form) for i in range(200) for form in (Prompt(f"{i}"), Prompt.of_user(f"{i}"))]
        split = split_parts([part_of(records)], 0.3, seed=0)
        assert len(split.train) + len(split.test) == 400
        sides = [{record.prompt.text for record in part} for part in (split.train, split.test)]
        assert not sides[0] & sides[1] and sides[1]
        assert all(is_test(record.prompt, 0.3) for record in split.test)
        assert list(split.test) == [record for record in records if record in split.test]


def lengths(_: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A scorer: the number of characters."""
    return [float(len(response)) for response in responses]


def completion(prompt: str, response: str, finished: bool = True) -> Completion:
    return Completion(Prompt(prompt), response, (1,), (2,), finished)


def pairs(differences: Sequence[int]) -> list[tuple[Completion, Completion]]:
    return [
        (completion(f"{i}", "a" * (30 + difference)), completion(f"{i}", "b" * 30))
        for i, difference in enumerate(differences)
    ]


def test_votes_follow_bradley_terry_and_their_bayes_accuracy_is_the_oracles() -> None:
    """The oracle prefers the longer text; it is right as often as it can be, within four standard errors."""
    differences = [(-1) ** i * (1 + i % 4) for i in range(20_000)]
    votes = simulate_votes(pairs(differences), lengths, sharpness=0.4, seed=0)
    right = sum(len(record.chosen) > len(record.rejected) for record in votes.records)
    expected = sum(1 / (1 + math.exp(-0.4 * abs(difference))) for difference in differences) / 20_000
    assert votes.bayes_accuracy == pytest.approx(expected, abs=1e-12)
    assert abs(right / 20_000 - expected) < 4 * math.sqrt(expected * (1 - expected) / 20_000)
    for size in (1, 4):
        kept = [record for record in votes.records if abs(len(record.chosen) - len(record.rejected)) == size]
        share = sum(len(record.chosen) > len(record.rejected) for record in kept) / len(kept)
        assert share == pytest.approx(1 / (1 + math.exp(-0.4 * size)), abs=4 * 0.5 / math.sqrt(len(kept)))


def test_which_stands_first_does_not_matter() -> None:
    first = sum(record.chosen.startswith("a") for record in simulate_votes(pairs([0] * 4000), lengths, 10, 0).records)
    assert abs(first / 4000 - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_votes_depend_on_the_seed_alone() -> None:
    made = [simulate_votes(pairs([1, -1] * 50), lengths, 0.1, seed).records for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_equal_texts_are_left_out_and_what_was_cut_is_remembered() -> None:
    same = (completion("p", "x"), completion("p", "x", finished=False))
    other = (completion("q", "long " * 100, finished=False), completion("q", "short"))
    votes = simulate_votes([same, other], lengths, sharpness=1.0, seed=0)
    (record,) = votes.records
    assert (record.prompt, record.chosen, record.rejected) == (Prompt("q"), "long " * 100, "short")
    assert (record.chosen_finished, record.rejected_finished) == (False, True)
    assert not record.tie and record.annotator == "simulated"
    assert simulate_votes([same], lengths, 1.0, 0).bayes_accuracy is None


@pytest.mark.parametrize("sharpness", [1e3, 1e6])
def test_a_sharp_labeller_never_errs(sharpness: float) -> None:
    votes = simulate_votes(pairs([5, -5] * 20), lengths, sharpness, seed=0)
    assert all(len(record.chosen) > len(record.rejected) for record in votes.records)
    assert votes.bayes_accuracy == 1.0
