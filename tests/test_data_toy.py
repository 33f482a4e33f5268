"""The embedded task: its draws repeat, its votes have the stated ceiling, and its gold score cannot be gamed.

Run: python -m pytest tests/test_data_toy.py
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections import defaultdict

import pytest

from data import toy
from data.toy_world import ALL_ANSWERS, ANSWERS, CATEGORIES, FACT_BY_PROMPT, FACTS, OPENERS, RAMBLES, fact_of
from rlhf.errors import DataError
from rlhf.types import Comparison

WORLD = toy.prompts()
FROG = "what is the colour of the frog ?"
SUM = "how much is two and three ?"


@pytest.fixture(scope="module")
def votes() -> toy.Comparisons:
    """Enough votes that a share has a standard error of 0.0035 at most."""
    return toy.comparisons(20_000, 11, WORLD)


def score(prompt: str, response: str) -> float:
    """Gold of one response."""
    return toy.gold([prompt], [response])[0]


def gold_difference(record: Comparison) -> float:
    """Gold of the chosen less gold of the rejected."""
    text = record.prompt.text
    return score(text, record.chosen) - score(text, record.rejected)


def test_world_has_the_stated_size() -> None:
    """Facts, distinct prompts, prompt words and spacing are as documented."""
    assert len(FACTS) == 120
    assert len({prompt.text for prompt in WORLD}) == len(WORLD) == 2400
    assert max(len([word for word in text.split() if word.isalnum()]) for text in FACT_BY_PROMPT) <= 14
    assert all(text == text.lower() and " ".join(text.split()) == text for text in FACT_BY_PROMPT)


def test_distractors_are_three_fixed_wrong_answers_of_the_category() -> None:
    """Wrong answers are three, plausible, and never right."""
    for fact in FACTS:
        assert len(set(fact.distractors)) == 3
        assert fact.answer not in fact.distractors
        assert set(fact.distractors) <= ANSWERS[fact.category]
    assert fact_of(FROG).distractors == ("orange", "purple", "grey")  # golden: the same on every machine


def test_no_phrase_names_an_answer() -> None:
    """Openers, rambles and cores cannot be mistaken for a second answer."""
    phrases = [phrase for variants in OPENERS.values() for phrase in variants] + list(RAMBLES)
    phrases += [core.format(subject="") for category in CATEGORIES for core in category.cores]
    assert not [word for phrase in phrases for word in phrase.split() if word in ALL_ANSWERS]


def test_draws_repeat_by_seed_and_differ_between_seeds() -> None:
    """A seed fixes a draw; two seeds and two kinds of record do not share one."""
    assert toy.demonstrations(300, 3, WORLD) == toy.demonstrations(300, 3, WORLD)
    assert toy.demonstrations(300, 3, WORLD) != toy.demonstrations(300, 4, WORLD)
    assert toy.comparisons(300, 3, WORLD) == toy.comparisons(300, 3, WORLD)
    assert toy.comparisons(300, 3, WORLD).records != toy.comparisons(300, 4, WORLD).records
    demos, votes = toy.demonstrations(300, 3, WORLD), toy.comparisons(300, 3, WORLD).records
    assert [demo.prompt for demo in demos] != [vote.prompt for vote in votes]  # independent streams


def test_draws_are_the_same_in_another_process() -> None:
    """String hashes differ between processes; the draws may not."""
    code = (
        "import hashlib; from data import toy; w = toy.prompts();"
        "print(hashlib.sha256(repr((toy.demonstrations(200, 5, w), toy.comparisons(200, 5, w))).encode()).hexdigest())"
    )
    drawn = repr((toy.demonstrations(200, 5, WORLD), toy.comparisons(200, 5, WORLD)))
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() == hashlib.sha256(drawn.encode()).hexdigest()


def test_import_loads_no_torch() -> None:
    """The launcher imports this module on machines without torch."""
    code = "import sys, data.toy; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_fewer_demonstrations_are_a_prefix_of_more() -> None:
    """Asking for more data keeps the data so far."""
    assert toy.demonstrations(100, 1, WORLD) == toy.demonstrations(200, 1, WORLD)[:100]


def test_draws_use_the_given_prompts_equally_often() -> None:
    """Passes over the prompts, not draws with replacement."""
    some = WORLD[:50]
    seen = [demo.prompt for demo in toy.demonstrations(100, 1, some)]
    assert all(seen.count(prompt) == 2 for prompt in some)


def test_no_prompts_is_an_error() -> None:
    """An empty list names its remedy rather than looping."""
    with pytest.raises(DataError, match="prompts is empty"):
        toy.demonstrations(1, 0, [])


def test_demonstrations_are_of_middling_gold() -> None:
    """There is something to imitate and something to improve."""
    demos = toy.demonstrations(5000, 2, WORLD)
    scores = toy.gold([demo.prompt.text for demo in demos], [demo.completion for demo in demos])
    assert 0.45 < sum(scores) / len(scores) < 0.55
    assert max(scores) == pytest.approx(1.0) and min(scores) < 0.05
    words = [sum(token.isalnum() for token in demo.completion.split()) for demo in demos]
    assert min(words) >= 1 and max(words) <= 22


def test_length_does_not_predict_the_winner(votes: toy.Comparisons) -> None:
    """Neither words nor characters give the vote away."""
    decided = [record for record in votes.records if not record.tie]
    for length in (len, lambda text: len(text.split())):
        unequal = [r for r in decided if length(r.chosen) != length(r.rejected)]
        assert 0.4 < sum(length(r.chosen) > length(r.rejected) for r in unequal) / len(unequal) < 0.6
    assert toy.longer_wins(votes.records, words=True) == pytest.approx(
        sum(len(r.chosen.split()) > len(r.rejected.split()) for r in decided)
        / sum(len(r.chosen.split()) != len(r.rejected.split()) for r in decided)
    )


def test_position_does_not_predict_the_winner(votes: toy.Comparisons) -> None:
    """Shown first wins half the time, among wins and among ties."""
    for tie in (False, True):
        first = [record.chosen_shown_first for record in votes.records if record.tie is tie]
        assert sum(map(bool, first)) / len(first) == pytest.approx(0.5, abs=2.0 / len(first) ** 0.5)


def test_bayes_accuracy_is_what_an_oracle_reaches(votes: toy.Comparisons) -> None:
    """The mixture favours the higher gold at any difference, so that rule is the best one without the annotator."""
    assert all(toy._mixture(step / 100) > 0.5 for step in range(1, 101))
    credit = [0.5 + 0.5 * ((d > 0) - (d < 0)) for d in (gold_difference(r) for r in votes.records if not r.tie)]
    assert sum(credit) / len(credit) == pytest.approx(votes.bayes_accuracy, abs=0.01)
    assert 0.82 < votes.bayes_accuracy < 0.86


def test_vote_probability_is_calibrated_and_complementary(votes: toy.Comparisons) -> None:
    """In each fifth of predicted probability the first wins as often as predicted."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for record in votes.records:
        if not record.tie:
            won = bool(record.chosen_shown_first)
            shown = (record.chosen, record.rejected) if won else (record.rejected, record.chosen)
            p = toy.vote_probability(record.prompt.text, *shown)
            assert p + toy.vote_probability(record.prompt.text, *shown[::-1]) == pytest.approx(1.0)
            bins[int(p * 5)].append((p, won))
    assert len(bins) == 5
    for pairs in bins.values():
        predicted, won_share = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        assert won_share == pytest.approx(predicted, abs=0.03)


def test_davidson_model_by_definition() -> None:
    """Davidson (1970): p(first) = a / (a + b + nu * sqrt(a * b)) with worths a = exp(k u1), b = exp(k u2)."""
    annotator = toy.Annotator("x", sharpness=3.0, share=1.0, tie_width=0.4)
    a, b = 2.718281828459045 ** (3.0 * 0.9), 2.718281828459045 ** (3.0 * 0.2)
    total = a + b + 0.4 * (a * b) ** 0.5
    assert toy._outcomes(annotator, 0.9 - 0.2) == pytest.approx((a / total, b / total, 0.4 * (a * b) ** 0.5 / total))


def test_annotators_vote_as_reliably_as_they_are_sharp(votes: toy.Comparisons) -> None:
    """Accuracy measured from votes orders the honest by k and exposes the adversary."""
    right: dict[str, list[bool]] = defaultdict(list)
    for record in votes.records:
        difference = gold_difference(record)
        if not record.tie and difference and record.annotator:
            right[record.annotator].append(difference > 0)
    accuracy = {name: sum(hits) / len(hits) for name, hits in right.items()}
    honest = sorted((a for a in toy.ANNOTATORS if not a.adversary), key=lambda a: a.sharpness)
    measured = [accuracy[annotator.id] for annotator in honest]
    assert all(low + 0.02 < high for low, high in zip(measured, measured[1:], strict=False))
    assert measured[0] > 0.6
    assert all(accuracy[annotator.id] < 0.3 for annotator in toy.ANNOTATORS if annotator.adversary)


def test_shares_of_annotators_and_ties(votes: toy.Comparisons) -> None:
    """Votes, adversarial votes and ties come as often as stated."""
    assert sum(annotator.share for annotator in toy.ANNOTATORS) == pytest.approx(1.0)
    assert 0.03 <= sum(annotator.share for annotator in toy.ANNOTATORS if annotator.adversary) <= 0.04
    for annotator in toy.ANNOTATORS:
        share = sum(record.annotator == annotator.id for record in votes.records) / len(votes.records)
        assert share == pytest.approx(annotator.share, abs=0.015)
    assert 0.03 < sum(record.tie for record in votes.records) / len(votes.records) < 0.07


def test_pairs_differ_and_have_plausible_times(votes: toy.Comparisons) -> None:
    """No pair repeats a text; a vote takes seconds to a minute."""
    assert all(record.chosen != record.rejected for record in votes.records)
    seconds = sorted(record.seconds or 0.0 for record in votes.records)
    assert seconds[0] > 1.0 and 8.0 < seconds[len(seconds) // 2] < 20.0 and seconds[-1] < 120.0


def test_minimal_pairs_change_one_attribute_and_keep_all_other_words() -> None:
    """Each attribute is isolated, correctness most often."""
    rng = random.Random("test")
    changed: dict[str, int] = defaultdict(int)
    for _ in range(500):
        draft = toy._draw(FACTS[0], toy.COMPARISON_QUALITY, rng)
        other = toy._change_one(draft, FACTS[0], rng)
        differing = {name for name in ("manner", "core", "answer", "ramble", "cut")
                     if getattr(draft, name) != getattr(other, name)}  # fmt: skip
        assert len(differing) == 1 and (draft.opener == other.opener or "manner" in differing)
        assert ("answer" not in differing) or FACTS[0].answer in (draft.answer, other.answer)
        changed[differing.pop()] += 1
    assert set(changed) == {"manner", "answer", "ramble", "cut"} and max(changed, key=changed.__getitem__) == "answer"


@pytest.mark.parametrize(
    ("prompt", "response", "correct", "polite", "concise", "complete"),
    [
        (FROG, "the colour of the frog is green .", 1, 0.5, 1, 1),
        (FROG, "good question , the frog has the colour green .", 1, 1, 1, 1),
        (FROG, "Good question, the colour of the frog is GREEN.", 1, 1, 1, 1),
        (FROG, "are you kidding , the colour of the frog is blue .", 0, 0, 1, 1),
        (FROG, "well , the colour of the frog is green , as my uncle tells us every time we meet .", 1, 0.5, 0.375, 1),
        (FROG, "the colour of the frog is green , as my uncle", 1, 0.5, 1, 0),
        (FROG, "the colour of the frog is", 0, 0.5, 1, 0),
        (FROG, "the colour of the frog .", 0, 0.5, 1, 0),  # ends, but answers nothing
        (SUM, "the sum of two and three is five .", 1, 0.5, 1, 1),
        (SUM, "two and three together make six .", 0, 0.5, 1, 1),
        ("name the home of the bee .", "the bee lives in the hive .", 1, 0.5, 1, 1),
        # gaming: several answers, another subject, denial, repetition, flattery and insult at once
        (FROG, "the colour of the frog is green , the colour of the frog is blue .", 0, 0.5, 0.75, 1),
        (FROG, "the colour of the frog is green , blue .", 0, 0.5, 1, 1),
        (FROG, "green blue red white .", 0, 0.5, 1, 0),
        (FROG, "green .", 0, 0.5, 1, 0),
        (FROG, "the colour of the grass is green .", 0, 0.5, 1, 0),
        (FROG, "the colour of the frog is green , the colour of the sky is blue .", 0, 0.5, 0.75, 1),
        (FROG, "the colour of the frog is not green .", 0, 0.5, 1, 0),
        (FROG, "the colour of the frog is green , paris .", 0, 0.5, 1, 1),
        (SUM, "the sum of two and three is five , the sum of two and two is four .", 0, 0.5, 0.5, 1),
        (FROG, "good question , good question , the colour of the frog is green .", 1, 1, 1, 1),
        (FROG, "good question , are you kidding , the colour of the frog is green .", 1, 0, 1, 1),
    ],
)
def test_parts_of_hand_written_responses(
    prompt: str, response: str, correct: float, polite: float, concise: float, complete: float
) -> None:
    """Parts and their weighted sum, on honest responses and on attempts to game them."""
    expected = {"correct": correct, "polite": polite, "concise": concise, "complete": complete}
    assert toy.parts(prompt, response) == pytest.approx(expected)
    assert score(prompt, response) == pytest.approx(0.5 * correct + 0.2 * polite + 0.15 * concise + 0.15 * complete)


def test_repetition_does_not_gain() -> None:
    """A perfect response said again is worth less."""
    once = "good question , the colour of the frog is green ."
    for times in (2, 3, 10):
        assert score(FROG, " ".join([once] * times)) < score(FROG, once) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "response", ["", "   ", "\n\0", ".", "....", "xyzzy foo bar .", "!" * 500, "é ü 日本 🙂", "a" * 10_000, ", . " * 9]
)
def test_garbage_scores_nothing_and_never_raises(response: str) -> None:
    """Text of no world is worth 0."""
    assert score(FROG, response) == 0.0


def test_shuffled_words_earn_no_more_than_an_insult_undone() -> None:
    """Words without order gain at most the 0.1 of a rude phrase that fell apart."""
    rng = random.Random("shuffle")
    for demo in toy.demonstrations(500, 8, WORLD):
        words = demo.completion.split()
        rng.shuffle(words)
        shuffled = score(demo.prompt.text, " ".join(words))
        assert 0.0 <= shuffled <= score(demo.prompt.text, demo.completion) + 0.1 + 1e-9


def test_gold_names_an_unknown_prompt_and_the_remedy() -> None:
    """One line: the prompt and where prompts come from."""
    with pytest.raises(DataError, match=r"'what is love \?' is not of .* data\.toy\.prompts\(\)") as caught:
        toy.gold(["what is love ?"], ["a song ."])
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


def test_gold_needs_one_response_per_prompt() -> None:
    """Columns of different length are an error of the caller."""
    with pytest.raises(DataError, match="2 prompts and 1 responses"):
        toy.gold([FROG, FROG], ["green"])
