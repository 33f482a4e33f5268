"""The gold score of the embedded task: the hidden utility that annotators see through noise.

Why: a learned reward can be gamed, so the pipeline's progress is judged by a rule that the training never sees.
gold = 0.5 correct + 0.2 polite + 0.15 concise + 0.15 complete, each part in [0, 1].

Use: from data.toy import gold, parts; gold([prompt], [response])
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.toy_world import ALL_ANSWERS, ANSWERS, OPENERS, VOCABULARY, Fact, fact_of
from rlhf.errors import DataError

WEIGHTS = {"correct": 0.5, "polite": 0.2, "concise": 0.15, "complete": 0.15}
FULL_WORDS = 12  # words, up to which a response is fully concise
ZERO_WORDS = 20  # words, from which on it is not concise at all
DENIALS = frozenset({"not", "no", "never", "neither", "nor", "false", "wrong", "untrue", "or"})

_TOKEN = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")  # a word, or a single mark
_POLITE = tuple(f" {phrase} " for phrase in OPENERS["polite"])
_RUDE = tuple(f" {phrase} " for phrase in OPENERS["rude"])
_CORES: dict[tuple[str, ...], re.Pattern[str]] = {}


def gold(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Hidden utility in [0, 1] of each response to the prompt beside it; DataError for a prompt of another world."""
    if len(prompts) != len(responses):
        raise DataError(f"gold got {len(prompts)} prompts and {len(responses)} responses; pass one response per prompt")
    return [utility(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def utility(prompt: str, response: str) -> float:
    """Gold score of one response, in [0, 1]."""
    found = parts(prompt, response)
    return sum(weight * found[name] for name, weight in WEIGHTS.items())


def parts(prompt: str, response: str) -> dict[str, float]:
    """The gold score's parts, each in [0, 1]: correct, polite, concise, complete."""
    fact = fact_of(prompt)
    tokens = _TOKEN.findall(response.lower())
    words = [token for token in tokens if token.isalnum()]
    # Text that is mostly not of this world earns nothing for being short or for not being rude.
    if not words or 2 * sum(word in VOCABULARY for word in words) < len(tokens):
        return dict.fromkeys(WEIGHTS, 0.0)
    text = f" {' '.join(tokens)} "
    stated = _core_pattern(fact).findall(text)
    concise = (ZERO_WORDS - len(words)) / (ZERO_WORDS - FULL_WORDS)
    return {
        "correct": float(_is_correct(fact, text, words, stated)),
        "polite": _politeness(text),
        "concise": min(1.0, max(0.0, concise)),
        "complete": float(tokens[-1] == "." and any(answer in ANSWERS[fact.category] for answer in stated)),
    }


def _core_pattern(fact: Fact) -> re.Pattern[str]:
    """Finds the answers that core sentences give about the fact's subject; a mark or the end must follow."""
    pattern = _CORES.get(fact.cores)
    if pattern is None:
        pattern = re.compile(rf" (?:{'|'.join(map(re.escape, fact.cores))}) ([a-z0-9]+)(?= (?:[^a-z0-9]|$))")
        _CORES[fact.cores] = pattern
    return pattern


def _is_correct(fact: Fact, text: str, words: list[str], stated: list[str]) -> bool:
    """The right answer is stated of the right subject, nothing else is named as an answer and nothing is denied."""
    if fact.answer not in stated or not DENIALS.isdisjoint(words):
        return False
    for core in fact.cores:  # the subject of a sum holds number words, which are answers of other sums
        text = text.replace(f" {core} ", " ")
    return ALL_ANSWERS.intersection(text.split()) == {fact.answer}


def _politeness(text: str) -> float:
    """0 if anything rude is said, 1 if something polite is, 0.5 for neither."""
    if any(phrase in text for phrase in _RUDE):
        return 0.0
    return 1.0 if any(phrase in text for phrase in _POLITE) else 0.5
