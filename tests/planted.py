"""Sound comparisons, and faults to plant among them: what the check of comparisons must find."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.splits import is_test
from rlhf.types import Prompt

Votes = list[dict[str, Any]]
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "il", "on")]


def words(generator: random.Random, least: int, most: int) -> str:
    """Words that nobody has seen before, as a sentence."""
    made = (
        "".join(generator.choices(SYLLABLES, k=generator.randint(1, 3))) for _ in range(generator.randint(least, most))
    )
    return " ".join(made)


def sound(count: int = 400, seed: int = 0) -> Votes:
    """Comparisons without a fault: of one annotator each, the order drawn and recorded."""
    generator = random.Random(seed)
    return [
        {
            "prompt": f"{words(generator, 8, 14)}?",
            "chosen": f"{words(generator, 10, 25)}.",
            "rejected": f"{words(generator, 10, 25)}.",
            "annotator": generator.choice(["ann", "bob", "cleo"]),
            "chosen_shown_first": generator.random() < 0.5,
        }
        for _ in range(count)
    ]


def write(path: Path, votes: Votes) -> str:
    """A file of comparisons."""
    path.write_text("".join(json.dumps(vote) + "\n" for vote in votes), encoding="utf-8")
    return str(path)


def swapped(vote: dict[str, Any]) -> dict[str, Any]:
    """The same pair, voted on in the other direction."""
    return {**vote, "chosen": vote["rejected"], "rejected": vote["chosen"]}


def _malformed(votes: Votes) -> tuple[Votes, int]:
    return [*votes, *({"prompt": vote["prompt"], "chosen": 3, "rejected": "a"} for vote in votes[:4])], 4


def _empty(votes: Votes) -> tuple[Votes, int]:
    silent = [{"role": "assistant", "content": ""}]
    changed = [{**vote, "rejected": silent} for vote in votes[:3]] + [{**vote, "chosen": " "} for vote in votes[3:6]]
    return [*changed, *votes[6:]], 6


def _identical(votes: Votes) -> tuple[Votes, int]:
    changed = [{**vote, "rejected": vote["chosen"]} for vote in votes[:3]]
    changed += [{**vote, "rejected": f" {vote['chosen']} "} for vote in votes[3:5]]
    return [*changed, *votes[5:]], 5


def _duplicate(votes: Votes) -> tuple[Votes, int]:
    exact, spaced = votes[:5], [{**vote, "prompt": f"  {vote['prompt']} "} for vote in votes[20:25]]
    return [*votes, *exact, *spaced], 10


def _nearly(votes: Votes) -> Votes:
    """A word more in both texts; or in front of one, so that the texts may come in the other order."""
    both = [{name: f"{vote[name][:-1]} too." for name in ("chosen", "rejected")} for vote in votes]
    return [
        {**vote, **(both[number] if number % 2 else {"chosen": f"zu {vote['chosen']}"})}
        for number, vote in enumerate(votes)
    ]


def _near_duplicate(votes: Votes) -> tuple[Votes, int]:
    return [*votes, *_nearly(votes[:30])], 30


def _near_contradiction(votes: Votes) -> tuple[Votes, int]:
    """Nearly the same pairs voted the other way, by the same annotators and by nobody named."""
    turned = [swapped(vote) for vote in _nearly(votes[:8])]
    unnamed = [{name: vote[name] for name in ("prompt", "chosen", "rejected")} for vote in turned[4:]]
    return [*votes, *turned[:4], *unnamed], 8


def _contradiction(votes: Votes) -> tuple[Votes, int]:
    unnamed = [{name: vote[name] for name in ("prompt", "chosen", "rejected")} for vote in votes[10:14]]
    return [*votes, *map(swapped, votes[:6]), *map(swapped, unnamed)], 10


def _leakage(votes: Votes) -> tuple[Votes, int]:
    """Held-out prompts in capitals, and with a word more, that the hash puts into the other part."""
    generator, added = random.Random(1), []
    held_out = [vote for vote in votes if is_test(Prompt(vote["prompt"]), 0.1)][:12]
    for number, vote in enumerate(held_out):
        variants = [vote["prompt"].upper(), f"{vote['prompt']} ", f" {vote['prompt']}", f"  {vote['prompt']}"]
        if number >= 6:
            variants = [f"{vote['prompt'][:-1]} {word}?" for word in SYLLABLES]
        prompt = next(text for text in variants if not is_test(Prompt(text), 0.1))
        own = {name: f"{words(generator, 10, 25)}." for name in ("chosen", "rejected")}
        added.append({**vote, "prompt": prompt, **own})
    return [*votes, *added], 12


def _length_bias(votes: Votes) -> tuple[Votes, int]:
    longer = [
        swapped(vote) if len(vote["rejected"]) > len(vote["chosen"]) else vote for vote in votes[: len(votes) // 2]
    ]
    rest = votes[len(votes) // 2 :]
    wins = sum(len(vote["chosen"]) > len(vote["rejected"]) for vote in [*longer, *rest])
    return [*longer, *rest], wins


def _position_bias(votes: Votes) -> tuple[Votes, int]:
    changed = [
        {**vote, "chosen_shown_first": vote["chosen_shown_first"] or number % 2 == 0}
        for number, vote in enumerate(votes)
    ]
    return changed, sum(vote["chosen_shown_first"] for vote in changed)


def _low_agreement(votes: Votes) -> tuple[Votes, int]:
    """Several annotators who vote as a coin falls."""
    generator = random.Random(2)
    added = [
        {**(vote if generator.random() < 0.5 else swapped(vote)), "annotator": name}
        for vote in votes[:100]
        for name in ("dan", "eve", "fay")
    ]
    return [*votes, *added], 100


def _swapped_labels(votes: Votes) -> tuple[Votes, int]:
    """One of three annotators has chosen and rejected exchanged."""
    agreeing = [{**vote, "annotator": name} for vote in votes[:60] for name in ("dan", "eve")]
    return [*votes[60:], *agreeing, *({**swapped(vote), "annotator": "fay"} for vote in votes[:60])], 60


def _tie(votes: Votes) -> tuple[Votes, int]:
    return [*({**vote, "tie": True} for vote in votes[:7]), *votes[7:]], 7


def _truncated(votes: Votes) -> tuple[Votes, int]:
    said = [{**vote, "chosen_finished": False} for vote in votes[:3]]
    cut = [{**vote, "rejected": vote["rejected"][:-1]} for vote in votes[3:8]]
    return [*said, *cut, *votes[8:]], 8


def _template(votes: Votes) -> tuple[Votes, int]:
    left = ["<|im_end|>", "\n\nHuman: and then?", "\nAssistant: yes.", "[/INST]", "\n### Response:\nyes.", "<|eot_id|>"]
    changed = [{**vote, "chosen": vote["chosen"] + mark} for vote, mark in zip(votes, left, strict=False)]
    return [*changed, {**votes[6], "prompt": f"<|user|>{votes[6]['prompt']}"}, *votes[7:]], 7


def _language(votes: Votes) -> tuple[Votes, int]:
    foreign = [
        "Это совсем другой язык, вот так.",
        "我不知道你在说什么，但是我会回答。",
        "\ufffd\ufffd broken.",
        "cafÃ© au lait.",
    ]
    mixed = "this sentence is английское и русское."
    changed = [{**vote, "rejected": text} for vote, text in zip(votes, [*foreign, mixed], strict=False)]
    return [*changed, *votes[5:]], 5


# Kind → what plants it; each gives the votes and how many a check has to count.
PLANTED: dict[str, Callable[[Votes], tuple[Votes, int]]] = {
    "malformed": _malformed,
    "empty": _empty,
    "identical": _identical,
    "duplicate": _duplicate,
    "near_duplicate": _near_duplicate,
    "contradiction": _contradiction,
    "leakage": _leakage,
    "length_bias": _length_bias,
    "position_bias": _position_bias,
    "low_agreement": _low_agreement,
    "tie": _tie,
    "truncated": _truncated,
    "template": _template,
    "language": _language,
}
SWAPPED_LABELS = _swapped_labels
NEAR_CONTRADICTION = _near_contradiction
