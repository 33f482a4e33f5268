"""Example records of every format with what they hold, and ways to read them from a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.formats import Example
from data.locations import files_of
from data.ratings import Rating
from data.reading import Reading
from rlhf.config import SourceConfig
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Message, Prompt

TURNS = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
MESSAGES = (Message("system", "be kind"), Message("user", "hi"))
ANSWER = {"role": "assistant", "content": "hello"}
OTHER = {"role": "assistant", "content": "no"}
HH = "\n\nHuman: hi\n\nAssistant: hey\n\nHuman:  two  \n\nAssistant:"
HH_PROMPT = Prompt((Message("user", "hi"), Message("assistant", "hey"), Message("user", " two  ")))
PANDALM = {"instruction": "i", "input": "", "response1": "a", "response2": "b", "annotator1": 1}
VOTE = {"prompt": "p", "chosen": "a", "rejected": "b"}
SQUALITY = {"passage": "5", "question": "0", "response": "r", "worker_id": "3", "overall-rating": 10}


def lines(file: Path, *records: dict[str, Any] | str) -> Path:
    texts = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return file


def reading(file: Path, kind: str | None, **options: Any) -> Reading:
    return Reading(SourceConfig(path=str(file), **options), files_of(str(file), None), kind)


def problems(file: Path, kind: str | None, **options: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        list(reading(file, kind, **options))
    assert all("\n" not in line and line.startswith(str(file)) for line in caught.value.problems)
    return list(caught.value.problems)


def both(prompt: Prompt, **options: Any) -> Comparison:
    return Comparison(prompt, "a", "b", **options)


P = Prompt("p")
GOOD: list[tuple[str, dict[str, Any], list[Example]]] = [
    ("prompt", {"prompt": " a text\n", "id": 1}, [Prompt(" a text\n")]),
    ("prompt", {"prompt": TURNS}, [Prompt(MESSAGES)]),
    ("prompt", {"prompt": [{"role": "prompter", "content": "hi"}]}, [Prompt.of_user("hi")]),
    ("prompt", {"prompt": "hi", "system": "be kind"}, [Prompt(MESSAGES)]),
    ("prompt", {"prompt": TURNS[1:], "system": "be kind"}, [Prompt(MESSAGES)]),
    ("prompt-completion", {"prompt": "p", "completion": " c"}, [Demonstration(P, " c")]),
    ("prompt-completion", {"prompt": "p", "completion": " c", "label": True}, [Demonstration(P, " c")]),
    ("prompt-completion", {"prompt": TURNS, "completion": [ANSWER]}, [Demonstration(Prompt(MESSAGES), "hello")]),
    (
        "prompt-completion",
        {"prompt": "p", "completion": [ANSWER, TURNS[1], OTHER]},
        [Demonstration(Prompt((Message("user", "p"), Message("assistant", "hello"), Message("user", "hi"))), "no")],
    ),
    ("messages", {"messages": [*TURNS, ANSWER], "prompt": "p"}, [Demonstration(Prompt(MESSAGES), "hello")]),
    ("instruction", {"instruction": "i", "input": "", "output": "o"}, [Demonstration(Prompt("i"), "o")]),
    ("instruction", {"instruction": "i", "input": "x ", "output": "o"}, [Demonstration(Prompt("i\n\nx "), "o")]),
    (
        "instruction",
        {"instruction": "i", "output": "o", "system": "s", "history": [["q", "a"]]},
        [
            Demonstration(
                Prompt((Message("system", "s"), Message("user", "q"), Message("assistant", "a"), Message("user", "i"))),
                "o",
            )
        ],
    ),
    (
        "self-instruct",
        {"instruction": "i", "instances": [{"input": "", "output": "1"}, {"input": "x", "output": "2"}]},
        [Demonstration(Prompt("i"), "1"), Demonstration(Prompt("i\n\nx"), "2")],
    ),
    ("preference", VOTE, [both(P)]),
    (
        "preference",
        {"prompt": TURNS, "chosen": [ANSWER], "rejected": "no"},
        [Comparison(Prompt(MESSAGES), "hello", "no")],
    ),
    (
        "preference",
        {"prompt": "hi", "chosen": [TURNS[1], ANSWER], "rejected": [TURNS[1], OTHER]},
        [Comparison(Prompt("hi"), "hello", "no")],
    ),
    (
        "preference",
        VOTE
        | {"tie": True, "annotator": 7, "weight": 2, "chosen_shown_first": False, "seconds": 1.5}
        | {"chosen_finished": False, "rejected_finished": True},
        [both(P, tie=True, annotator="7", weight=2.0, chosen_shown_first=False, seconds=1.5, chosen_finished=False)],
    ),
    ("preference", VOTE | {"time": "2026-11-28T13:00:00.25+01:00"}, [both(P, time=1795867200.25)]),
    ("preference", VOTE | {"votes": [{"prefers": "chosen", "time": 0}]}, [both(P, time=0.0)]),
    ("preference", VOTE | {"target": 0.75, "weight": 0.5}, [both(P, target=0.75, weight=0.5)]),
    ("preference", VOTE | {"target": 1}, [both(P)]),
    ("preference", VOTE | {"target": 0.5}, [both(P, tie=True)]),
    ("preference", VOTE | {"annotators": ["x", "y"]}, [both(P, annotator="x"), both(P, annotator="y")]),
    (
        "preference",
        VOTE
        | {"chosen_finished": False, "chosen_shown_first": True}
        | {
            "votes": [
                {"prefers": "chosen", "annotator": "x", "seconds": 2},
                {"prefers": "rejected", "annotator": "y", "weight": 3},
                {"prefers": "tie"},
            ]
        },
        [
            both(P, annotator="x", seconds=2.0, chosen_finished=False, chosen_shown_first=True),
            Comparison(P, "b", "a", annotator="y", weight=3.0, rejected_finished=False, chosen_shown_first=False),
            both(P, tie=True, chosen_finished=False, chosen_shown_first=True),
        ],
    ),
    ("preference", VOTE | {"rejected": [{"role": "assistant", "content": ""}]}, [Comparison(P, "a", "")]),
    (
        "implicit-preference",
        {"chosen": [*TURNS, ANSWER], "rejected": [*TURNS, OTHER]},
        [Comparison(Prompt(MESSAGES), "hello", "no")],
    ),
    (
        "implicit-preference",
        {"chosen": "The cat sat on the mat", "rejected": "The cat sat on the map"},
        [Comparison(Prompt("The cat sat on the"), " mat", " map")],
    ),
    ("implicit-preference", {"chosen": "Q?\nYes", "rejected": "Q?\nYelp"}, [Comparison(Prompt("Q?\n"), "Yes", "Yelp")]),
    ("implicit-preference", {"chosen": "A b", "rejected": "A bc"}, [Comparison(Prompt("A"), " b", " bc")]),
    ("hh", {"chosen": f"{HH}  yes\n", "rejected": f"{HH} no"}, [Comparison(HH_PROMPT, " yes\n", "no")]),
    ("hh", {"chosen": f"{HH} ", "rejected": f"{HH} no"}, [Comparison(HH_PROMPT, "", "no")]),
    (
        "pandalm",
        PANDALM | {"annotator2": 2, "annotator10": 0},
        [
            Comparison(Prompt("i"), "a", "b", annotator="annotator1"),
            Comparison(Prompt("i"), "b", "a", annotator="annotator2"),
            Comparison(Prompt("i"), "a", "b", annotator="annotator10", tie=True),
        ],
    ),
    ("pandalm", PANDALM | {"response2": ""}, [Comparison(Prompt("i"), "a", "", annotator="annotator1")]),
    ("rating", {"text": "t", "mean": 0.5, "ratings": [0, 1]}, [Rating("t", 0.5)]),
    ("rating", {"text": "t", "ratings": [1, 2]}, [Rating("t", 1.5)]),
    ("rating", {"prompt": "p", "response": "t", "rating": 3, "annotator": "x"}, [Rating("t", 3.0, P, "p", "x")]),
    ("squality", SQUALITY, [Rating("r", 10.0, None, "5/0", "3")]),
]
BASE: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "p"},
    "prompt-completion": {"prompt": "p", "completion": "c"},
    "preference": VOTE,
    "messages": {"messages": [*TURNS, ANSWER]},
    "instruction": {"instruction": "i", "input": "x", "output": "o"},
    "self-instruct": {"instruction": "i", "instances": [{"input": "", "output": "o"}]},
    "implicit-preference": {"chosen": "a b", "rejected": "a c"},
    "hh": {"chosen": f"{HH} yes", "rejected": f"{HH} no"},
    "pandalm": PANDALM,
    "rating": {"text": "t", "mean": 1.0},
    "squality": SQUALITY,
}
