"""Two sentiment lexicons as gold rewards: how cheerful a response is, in [0, 1], without a model and without training.

A gold that people made (every word was rated by hand), that any text can be scored with and that no stage sees lets a
demonstration tell learning from over-optimisation. The second lexicon, by other authors on another scale, checks the
first: what PPO gains on both is cheer, what it gains on one alone is exploitation of that one. Both sum over words, so
a longer response can reach further from the neutral 0.5; compare responses of one maximum length.
The lexicons are not part of this package: they lie in a data directory that the caller names (`--data-dir`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.stories import read_data_file
from rlhf.errors import DataError

VADER_FILE = "lexicon/vader_lexicon.txt.gz"
AFINN_FILE = "lexicon/AFINN-en-165.txt"

# alpha of VADER's reference implementation: a sum of sqrt(15) = 3.9 maps to 0.85.
_VADER_ALPHA = 15.0
# Equal to VADER's although AFINN's scale is wider (-5..5 against -4..4): fewer words have an entry, and over 3,900
# pieces of stories the sums spread alike (standard deviation 3.6 against 3.5).
_AFINN_ALPHA = 15.0
_NEGATION_FACTOR = -0.74  # N_SCALAR of the reference implementation
_NEGATION_REACH = 3  # words before the rated one
_LONGEST_TERM = 3  # words; the longest terms in AFINN

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
# NEGATE of the reference implementation: "isn't" and its like, and what is spelt without the apostrophe.
_NEGATION = re.compile(
    r".*n't.*|aint|arent|cannot|cant|couldnt|darent|despite|didnt|doesnt|dont|hadnt|hasnt|havent|isnt|mightnt|"
    r"mustnt|neednt|neither|never|none|nope|nor|not|nothing|nowhere|oughtnt|rarely|seldom|shant|shouldnt|"
    r"uh-uh|uhuh|wasnt|werent|without|wont|wouldnt"
)


def files(data_directory: str | None) -> list[Path]:
    """The files that both scorers read, for fingerprints."""
    return [Path(data_directory or ".") / name for name in (VADER_FILE, AFINN_FILE)]


@functools.cache
def _lexicon(data_directory: str | None, name: str) -> Mapping[str, float]:
    valences: dict[str, float] = {}
    for number, line in enumerate(read_data_file(data_directory, name).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            term, valence = line.split("\t")[:2]
            valences[term] = float(valence)
        except ValueError:
            raise DataError(
                f"{data_directory}/{name}:{number} is not a term, a tab and a number but {line[:60]!r}; "
                "give --data-dir a directory with the lexicon as published"
            ) from None
    return valences


def _valence(text: str, lexicon: Mapping[str, float]) -> float:
    """Sum of the valences of the terms in a text, longest terms first, with negations."""
    words = _WORD.findall(text.lower().replace("’", "'"))
    total, position = 0.0, 0
    while position < len(words):
        for length in range(min(_LONGEST_TERM, len(words) - position), 0, -1):
            valence = lexicon.get(" ".join(words[position : position + length]))
            if valence is not None:
                break
        if valence is not None:
            before = words[max(0, position - _NEGATION_REACH) : position]
            total += valence * (_NEGATION_FACTOR if any(map(_NEGATION.fullmatch, before)) else 1.0)
        position += length
    return total


def _to_unit_interval(valence: float, alpha: float) -> float:
    return (valence / math.sqrt(valence * valence + alpha) + 1.0) / 2.0


def vader(prompts: Sequence[str], responses: Sequence[str], *, data_directory: str | None) -> list[float]:
    """Cheer of each response by VADER's lexicon (Hutto & Gilbert 2014): 0 sad, 0.5 neutral or no rated word, 1 happy.

    Figures are (x + 1) / 2 with x = s / sqrt(s² + 15) and s the sum of the valences of the response's words; a negation
    among the three words before turns a valence into -0.74 of itself. This is the lexicon, the normalisation and the
    main negation rule of VADER, not all of it: left out are boosters ("very", "barely"), exclamation and question
    marks, capitals, emoticons, idioms ("the bomb"), the shift of weight at "but", "least", "never so", "no" as a
    negation (here it only has its own valence), double negation, and that a negation that is rated itself does not
    negate. Prompts do not count.
    """
    lexicon = _lexicon(data_directory, VADER_FILE)
    return [_to_unit_interval(_valence(response, lexicon), _VADER_ALPHA) for response in responses]


def afinn(prompts: Sequence[str], responses: Sequence[str], *, data_directory: str | None) -> list[float]:
    """Cheer of each response by AFINN-en-165 (Nielsen 2011), on the scale of `vader` and with its negation rule.

    AFINN itself sums valences and neither normalises nor negates, except by terms such as "not good", which are matched
    before their single words.
    """
    lexicon = _lexicon(data_directory, AFINN_FILE)
    return [_to_unit_interval(_valence(response, lexicon), _AFINN_ALPHA) for response in responses]
