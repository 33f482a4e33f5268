"""What is wrong with a single vote, whatever else there is: what its texts look like."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from rlhf.types import Comparison

# Special tokens and headings of chat templates in use; what a tokenizer adds to them is given.
MARKERS = re.compile(
    r"<\|[\w -]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>"
    r"|<\uff5c[^\uff5c<>]{2,40}\uff5c>|^###? ?(?:Instruction|Response|Human|Assistant|User):|\{%[^%{}]{1,80}%\}",
    re.MULTILINE,
)
# A speaker's name at the beginning of a line: a transcript that was cut in the wrong place.
SPEAKERS = re.compile(r"^[ \t]*(?:Human|Assistant|User|System):", re.MULTILINE)
BROKEN = re.compile("\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u2122]")  # decoded once too often

# What a text with a match holds: looked for first, since that takes a tenth of the time.
_MARKED = ("<", "INST]", "##", "{%")
_SPOKEN = ("Human:", "Assistant:", "User:", "System:")
_BEYOND_LATIN = re.compile("[\u0370-\u1dff\u1f00-\u1fff\u2e80-\ud7ff\uf900-\ufeff\U00020000-\U0002ffff]")

_ENDS_INSIDE = re.compile(r"[\w,;:(\-]$")
CUT_FROM = 20  # characters; a shorter response may be a word or a name
LETTERS = 10  # of a script, from which on a text is written in it
FOREIGN = 0.1  # share of letters

# First code points of ranges, and the script of each. Han and kana mix within one language.
_RANGES: tuple[tuple[int, str], ...] = (
    (0x0000, ""), (0x0041, "Latin"), (0x005B, ""), (0x0061, "Latin"), (0x007B, ""), (0x00C0, "Latin"), (0x0250, ""),
    (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"), (0x0600, "Arabic"),
    (0x0700, ""), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, ""), (0x0B80, "Tamil"), (0x0C00, "Telugu"),
    (0x0C80, ""), (0x0E00, "Thai"), (0x0E80, ""), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"),
    (0x13A0, ""), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x3040, "Han or kana"), (0x3130, "Hangul"),
    (0x3190, ""), (0x3400, "Han or kana"), (0xA000, ""), (0xAC00, "Hangul"), (0xD7B0, ""), (0xF900, "Han or kana"),
    (0xFB00, ""), (0x20000, "Han or kana"), (0x30000, ""),
)  # fmt: skip
_STARTS = np.array([start for start, _ in _RANGES], np.uint32)
SCRIPTS = sorted({script for _, script in _RANGES if script})
_NUMBER = np.array([SCRIPTS.index(script) if script else len(SCRIPTS) for _, script in _RANGES])


def normalised(text: str) -> str:
    """A text without what makes it hardly another: case, kinds of spaces and of letters, marks around it."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    squeezed = " ".join(text.casefold().split())
    return squeezed.strip(" .,;:!?'\"-*#_") or squeezed


def same_text(text: str) -> str:
    """A text without white space around it and a full stop at its end. -5 is not 5, C# not C, and A not a."""
    stripped = text.strip()
    return stripped.removesuffix(".") or stripped


def faults_of(vote: Comparison, reserved: Collection[str] = ()) -> dict[str, str]:
    """Kind → what was seen, in words. reserved: special tokens of the tokenizer that the texts will meet."""
    found: dict[str, str] = {}
    texts = {"chosen": vote.chosen, "rejected": vote.rejected}
    empty = [name for name, text in texts.items() if not text.strip()]
    if empty:
        found["empty"] = f"{' and '.join(empty)} without content"
    if not empty and same_text(vote.chosen) == same_text(vote.rejected):
        found["identical"] = "responses differ in spaces around them or a full stop at most"
    if vote.tie:
        found["tie"] = "no preference"
    if cut := _cut(vote):
        found["truncated"] = cut
    if left := _left_over({"prompt": vote.prompt.text, **texts}, reserved):
        found["template"] = left
    if foreign := _foreign(vote):
        found["language"] = foreign
    return found


def _cut(vote: Comparison) -> str | None:
    """Whether a response was cut: said so, the beginning of the other, or without an end."""
    for name, text, other, finished in (
        ("chosen", vote.chosen, vote.rejected, vote.chosen_finished),
        ("rejected", vote.rejected, vote.chosen, vote.rejected_finished),
    ):
        if not finished:
            return f"{name} was cut by a length limit"
        stripped = text.strip()
        if len(stripped) < CUT_FROM:
            continue
        if len(stripped) < len(other.strip()) and other.strip().startswith(stripped):
            return f"{name} is the beginning of the other"
        if _ENDS_INSIDE.search(stripped) and len(stripped.rpartition("\n")[2]) >= CUT_FROM:
            return f"{name} ends inside a sentence: ...{stripped[-30:]}"
    return None


def _left_over(texts: dict[str, str], reserved: Collection[str]) -> str | None:
    """What is left of a template or a transcript."""
    for name, text in texts.items():
        match = MARKERS.search(text) if any(mark in text for mark in _MARKED) else None
        if not match and name != "prompt" and any(speaker in text for speaker in _SPOKEN):
            match = SPEAKERS.search(text)
        token = match[0].strip() if match else next((token for token in reserved if token in text), None)
        if token:
            return f"{token!r} in {name}"
    return None


def scripts(text: str) -> NDArray[np.int64]:
    """Letters of each of SCRIPTS."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    numbers = _NUMBER[np.searchsorted(_STARTS, points, side="right") - 1]
    return np.bincount(numbers, minlength=len(SCRIPTS) + 1)[: len(SCRIPTS)]


def _foreign(vote: Comparison) -> str | None:
    """A response in another script than its prompt, in several, or wrongly decoded."""
    prompt, asked = vote.prompt.text, None
    for name, text in (("chosen", vote.chosen), ("rejected", vote.rejected)):
        if text.isascii() and prompt.isascii():
            continue
        if broken := BROKEN.search(text):
            return f"{name} holds {broken[0]!r}, wrongly decoded"
        if not _BEYOND_LATIN.search(text) and not _BEYOND_LATIN.search(prompt):
            continue
        asked = scripts(prompt) if asked is None else asked
        written = scripts(text)
        if asked.sum() >= LETTERS and written.sum() >= LETTERS and asked.argmax() != written.argmax():
            return f"{name} is in {SCRIPTS[written.argmax()]}, its prompt in {SCRIPTS[asked.argmax()]}"
        foreign = (asked == 0) & (written >= FOREIGN * written.sum()) & (written > 3)
        foreign[[SCRIPTS.index("Latin"), written.argmax()]] = False  # names and terms are Latin in every language
        if foreign.any():
            return f"{name} mixes {SCRIPTS[written.argmax()]} and {SCRIPTS[foreign.argmax()]}"
    return None
