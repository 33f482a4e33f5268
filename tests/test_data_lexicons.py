"""The lexicon golds against hand-made sums, against each other, and in what they refuse."""

from __future__ import annotations

import gzip
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from published import published_data  # noqa: F401  # the fixture `real_data`

from data.lexicons import AFINN_FILE, VADER_FILE, afinn, vader
from data.stories import demonstrations
from rlhf.errors import DataError

Gold = Callable[..., list[float]]

ROOT = Path(__file__).parents[1]
HAPPY = " The little dog was so happy, and they were best friends."
NEUTRAL = " The dog sat on the mat next to the door."
SAD = " The little dog was lost and scared, and it cried all night."


@pytest.fixture
def small_data(tmp_path: Path) -> str:
    """A directory with lexicons of a few terms."""
    (tmp_path / "lexicon").mkdir()
    rows = "happy\t2.7\t0.9\t[3, 2]\nsad\t-2.1\t0.9\t[-2, -2]\nfun\t2.3\t0.9\t[2, 2]\n"
    (tmp_path / VADER_FILE).write_bytes(gzip.compress(rows.encode()))
    rows = "happy\t3\ndoes not work\t-3\nwork\t1\nnot good\t-2\ngood\t3\n"
    (tmp_path / AFINN_FILE).write_text(rows, encoding="utf-8")
    return str(tmp_path)


def score_of_sum(valence: float) -> float:
    """(x + 1) / 2 with x = s / sqrt(s² + 15), as the half-angle form of the same curve."""
    return 0.5 + 0.5 * math.sin(math.atan(valence / math.sqrt(15.0)))


@pytest.mark.parametrize(
    ("response", "valence"),
    [
        ("", 0.0),
        (" The dog sat.", 0.0),
        (" HAPPY, happy; sad!", 2.7 + 2.7 - 2.1),
        (" They were\n\nhappy.Then sad", 2.7 - 2.1),
        (" He was not happy.", -0.74 * 2.7),
        (" He didn't feel so happy.", -0.74 * 2.7),
        (" He didn’t feel so happy.", -0.74 * 2.7),
        (" It was not that he was happy.", 2.7),  # four words before
        (" Never, never sad", -0.74 * -2.1),  # two negations count once
        (" It was without fun", -0.74 * 2.3),
        (" no fun", 2.3),  # "no" is not a negation here, and this small lexicon does not rate it
        (" unhappy funny sadly", 0.0),  # whole words only
    ],
)
def test_vader_is_the_normalised_sum(small_data: str, response: str, valence: float) -> None:
    """Words, letter case, punctuation and negation, against sums by hand."""
    assert vader(["happy happy"], [response], data_directory=small_data) == [pytest.approx(score_of_sum(valence))]


@pytest.mark.parametrize(
    ("response", "valence"),
    [
        (" It works and is good", 3.0),
        (" It does not work", -3.0),  # the term, not "work" negated
        (" It is not good, is it happy", -2.0 + 3.0),
        (" It did not work", -0.74 * 1.0),
        (" never not good", -0.74 * -2.0),
        (" does not", 0.0),
    ],
)
def test_afinn_prefers_the_longest_term(small_data: str, response: str, valence: float) -> None:
    """Terms of several words count once and before their parts."""
    assert afinn([""], [response], data_directory=small_data) == [pytest.approx(score_of_sum(valence))]


@pytest.mark.parametrize("gold", [vader, afinn])
def test_cheerful_neutral_sad(real_data: str, gold: Gold) -> None:
    """The published lexicons order plain sentences, whatever the prompt says, and a negation turns them."""
    responses = [HAPPY, NEUTRAL, SAD, " She was happy.", " She was not happy.", " She was not sad.", " She was sad."]
    happy, neutral, sad, plain, negated, not_sad, plain_sad = gold([SAD] * 7, responses, data_directory=real_data)
    assert 0.8 < happy < 1 and neutral == 0.5 and 0 < sad < 0.2
    assert plain > not_sad > 0.5 > negated > 0
    assert not_sad > 0.5 > plain_sad
    assert gold([HAPPY] * 7, responses, data_directory=real_data)[0] == happy


def test_golds_agree_on_stories(real_data: str) -> None:
    """Two independent lexicons see the same cheer in what authors wrote, without being one and the same."""
    texts = [example.completion for example in demonstrations(real_data, 1000, seed=0)]
    first, second = (gold(texts, texts, data_directory=real_data) for gold in (vader, afinn))
    mean_first, mean_second = sum(first) / len(first), sum(second) / len(second)
    covariance = sum((a - mean_first) * (b - mean_second) for a, b in zip(first, second, strict=True))
    spread_first = sum((a - mean_first) ** 2 for a in first)
    spread_second = sum((b - mean_second) ** 2 for b in second)
    assert 0.6 < covariance / math.sqrt(spread_first * spread_second) < 0.99
    assert all(0 <= score <= 1 for score in first + second)


@pytest.mark.parametrize("gold", [vader, afinn])
def test_missing_lexicon_names_the_remedy(tmp_path: Path, gold: Gold) -> None:
    """No directory, or one without the file: one line that names --data-dir."""
    for directory in (None, str(tmp_path)):
        with pytest.raises(DataError, match="give --data-dir") as caught:
            gold([""], [""], data_directory=directory)
        assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


def test_damaged_lexicon_names_the_line(small_data: str) -> None:
    """A row that is no row, and a file that is no gzip."""
    (Path(small_data) / AFINN_FILE).write_text("good\t3\nbad -3\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"AFINN-en-165\.txt:2 is not a term, a tab and a number but 'bad -3'; give"):
        afinn([""], [""], data_directory=small_data)
    (Path(small_data) / VADER_FILE).write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"vader_lexicon\.txt\.gz cannot be read .*; give --data-dir") as caught:
        vader([""], [""], data_directory=small_data)
    assert "\n" not in str(caught.value)


def test_import_loads_no_torch() -> None:
    """The launcher can name these golds at no cost."""
    code = "import sys, data.lexicons; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert result.stdout.strip() == "[]"
