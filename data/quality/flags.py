"""Responses that a user's own list of words, or a user's own classifier, takes for offensive. No list is shipped.

A list has a word or a phrase a line; what begins with # is a remark. Words are found whole and whatever their case, in
scripts without spaces between words anywhere. An entry with other characters (a$$, c++) is found as it stands. Loads
torch where a classifier is given, and not before.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from data.quality.faults import SCRIPTS, scripts
from data.records import one_line, shown
from rlhf.config import CheckConfig, ClassifierConfig
from rlhf.errors import ArtifactError, ConfigError
from rlhf.store.weights import check_model_directory, read_json

# Of each text, what was found in it, in words; None: nothing.
Flagging = Callable[[Sequence[str]], list[str | None]]

UNSPACED = [SCRIPTS.index(script) for script in ("Han or kana", "Thai")]


def flagging_of(config: CheckConfig, directory: str | None, models: bool) -> Flagging | None:
    """What flags responses under a recipe's check; None where nothing is asked for.

    models: whether a classifier may be loaded, which takes torch. Raises ConfigError for a list that cannot be read,
    ArtifactError or ConfigError for a classifier.
    """
    every: list[Flagging] = []
    if config.words is not None:
        every.append(WordList(words_place(config.words, directory)))
    if config.classifier is not None and models:
        from data.quality.classifier import Classifier

        every.append(Classifier(config.classifier, directory))
    if not every:
        return None

    def flag(texts: Sequence[str]) -> list[str | None]:
        return [next(filter(None, found), None) for found in zip(*(each(texts) for each in every), strict=True)]

    return flag


def words_place(words: str, directory: str | None) -> Path:
    """Where a list of words is: relative paths start at data.directory."""
    return Path(directory or ".") / words


def classifier_place(config: ClassifierConfig, directory: str | None) -> Path:
    """Where a classifier is: relative paths start at data.directory."""
    return Path(directory or ".") / config.path


def labels_of(config: ClassifierConfig, directory: str | None) -> dict[int, str]:
    """The labels of offensive texts, by their numbers.

    Raises ArtifactError where no classifier with safetensors is there, ConfigError where it has no such label, or
    several and none is named.
    """
    path = classifier_place(config, directory)
    if not path.is_dir():
        raise ArtifactError(f"classifier {path}: no such directory; give that of a text classifier")
    check_model_directory(path)
    shape = read_json(path / "config.json")
    named = shape.get("id2label")
    every = named if isinstance(named, dict) else {n: f"LABEL_{n}" for n in range(int(shape.get("num_labels") or 2))}
    try:
        names = {int(number): str(name) for number, name in every.items()}
    except ValueError as error:
        raise ArtifactError(f"{path / 'config.json'}: id2label does not number its labels; mend it") from error
    if not config.labels and len(names) > 1:
        raise ConfigError(
            f"classifier {path}: has labels {', '.join(names.values())}; say which are of offensive texts (--label, or "
            "data.check.classifier.labels)"
        )
    for label in config.labels:
        if label not in names.values():
            raise ConfigError(f"classifier {path}: has no label {label}; choose from {', '.join(names.values())}")
    return {number: name for number, name in names.items() if name in config.labels or not config.labels}


class WordList:
    """Words and phrases of a file."""

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"words {path}: cannot be read ({one_line(error)}); give a text in UTF-8") from error
        entries = [folded(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
        # First word → the words of entries that begin with it; a dictionary, for a pattern of thousands is slow.
        self.phrases: dict[str, list[tuple[str, ...]]] = {}
        self.anywhere: list[str] = []
        self.literal: dict[str, list[str]] = {}  # likewise, the entries that hold more than words
        for entry in entries:
            found = tuple(words_in(entry))
            if not found or scripts(entry)[UNSPACED].any():
                self.anywhere.append(" ".join(entry.split()))  # without a letter, such as a pictogram, too
            elif "".join(found) != "".join(entry.split()):
                self.literal.setdefault(found[0], []).append(" ".join(entry.split()))
            else:
                self.phrases.setdefault(found[0], []).append(found)
        if not entries:
            raise ConfigError(f"words {path}: holds no word; give one a line")

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """The first entry that each text holds."""
        return [self._first(folded(text)) for text in texts]

    def _first(self, text: str) -> str | None:
        words, text = words_in(text), " ".join(text.split())
        for number, word in enumerate(words):
            for entry in self.literal.get(word, ()):
                if _stands_alone(entry, text):
                    return shown(entry)
            for phrase in self.phrases.get(word, ()):
                if tuple(words[number : number + len(phrase)]) == phrase:
                    return shown(" ".join(phrase))
        return next((shown(entry) for entry in self.anywhere if entry in text), None)


def words_in(text: str) -> list[str]:
    """Runs of letters, digits and their marks, without which words of Indic scripts would be cut to single letters."""
    return _word().findall(text)


@functools.cache
def _word() -> re.Pattern[str]:
    """Made when first asked for: to look at each code point takes tenths of a second."""
    every = map(chr, range(sys.maxunicode + 1))
    runs = itertools.groupby(every, lambda point: unicodedata.category(point)[0] == "M")
    marks = [list(run) for is_mark, run in runs if is_mark]
    mark = "[" + "".join(f"{run[0]}-{run[-1]}" for run in marks) + "]"
    # A joiner, as in Persian and Hindi, ends no word that goes on behind it.
    return re.compile(rf"[^\W_]+(?:{mark}+[^\W_]*|[\u200c\u200d][^\W_]+)*")


def _stands_alone(entry: str, text: str) -> bool:
    """Whether somewhere no letter, digit or mark is beside it."""
    place = text.find(entry)
    while place >= 0:
        end = place + len(entry)
        beside = text[max(place - 1, 0) : place] + text[end : end + 1]
        if not any(unicodedata.category(point)[0] in "LNM" for point in beside):
            return True
        place = text.find(entry, place + 1)
    return False


def folded(text: str) -> str:
    """A text whatever its case and the kind of its letters."""
    return text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
