"""What every format refuses, named by file and line with the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.formats import FORMATS, USES
from tests.formats import ANSWER, BASE, HH, OTHER, TURNS, lines, problems, reading


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


BAD_PROMPTS = [
    None,
    1,
    "",
    " \n",
    [],
    ["hi"],
    {"role": "user"},
    [{"role": "robot", "content": "x"}],
    [{"role": ["user"], "content": "x"}],
    [{"role": "user"}],
]
BAD_RESPONSES = [None, True, "", "  ", [], [{"role": "assistant", "content": None}]]
PROMPTED = ("prompt", "prompt-completion", "preference")
BAD: list[tuple[str, dict[str, Any]]] = [
    *[(form, {"prompt": bad}) for form in PROMPTED for bad in BAD_PROMPTS],
    *[(form, {"prompt": "half a pair: \ud800"}) for form in PROMPTED],
    *[("prompt-completion", {"completion": bad}) for bad in BAD_RESPONSES],
    *[("preference", {field: bad}) for field in ("chosen", "rejected") for bad in BAD_RESPONSES],
    *[("preference", {"weight": bad}) for bad in (-1, "1", True, float("nan"), float("inf"), 10**400)],
    *[("preference", {"tie": bad}) for bad in (1, "true")],
    *[("preference", {"seconds": bad}) for bad in (-1, "1", float("nan"))],
    *[
        ("preference", {"time": bad})
        for bad in ("", "today", "2026-11-28T13:00:00", "1969-12-31T00:00Z", -1, 1.8e12, True)
    ],
    *[("preference", {"chosen_shown_first": bad}) for bad in (1, "true")],
    ("preference", {"chosen_finished": 1}),
    *[(form, {"prompt": TURNS, "system": "be brief"}) for form in PROMPTED],
    *[(form, {"system": 3}) for form in PROMPTED],
    *[("preference", {"annotator": bad}) for bad in (True, 1.5, ["x"], {"id": 1}, "\udc00")],
    *[("preference", {"annotators": bad}) for bad in ("x", [], [None], 3)],
    *[("preference", {"votes": bad}) for bad in ({}, [], ["chosen"], [{"prefers": "a"}], [{"prefers": ["tie"]}])],
    ("preference", {"annotators": ["x"], "annotator": "y"}),
    ("preference", {"votes": [{"prefers": "tie"}], "tie": True}),
    ("preference", {"votes": [{"prefers": "tie"}], "annotators": ["x"]}),
    ("preference", {"rejected": "a"}),
    ("preference", {"chosen": [{"role": "user", "content": "not an answer"}]}),
    ("preference", {"chosen": [{"role": "user", "content": "another prompt"}, ANSWER]}),
    *[("messages", {"messages": bad}) for bad in (None, [], "x", TURNS, [ANSWER], [*TURNS, "x"])],
    ("messages", {"messages": [*TURNS, {"role": "assistant", "content": " "}]}),
    *[("instruction", {"output": bad}) for bad in ("", None, 3)],
    *[("instruction", {"history": bad}) for bad in ("x", [["q"]], [["q", 1]], {"q": "a"})],
    ("instruction", {"instruction": " ", "input": ""}),
    ("instruction", {"input": 3}),
    *[("self-instruct", {"instances": bad}) for bad in (None, [], ["x"], [{"input": ""}], [{"output": 1}])],
    ("implicit-preference", {"rejected": "a b"}),
    ("implicit-preference", {"rejected": "x"}),
    ("implicit-preference", {"rejected": "a b c"}),
    ("implicit-preference", {"chosen": [ANSWER], "rejected": [OTHER]}),
    ("implicit-preference", {"chosen": [*TURNS, ANSWER]}),
    ("implicit-preference", {"chosen": [*TURNS, ANSWER], "rejected": [*TURNS, ANSWER, TURNS[1], OTHER]}),
    ("hh", {"rejected": f"{HH} yes"}),
    ("hh", {"rejected": "\n\nHuman: hi\n\nAssistant: hey"}),
    ("hh", {"rejected": f"{HH} no\n\nAssistant: more"}),
    ("hh", {"rejected": f"{HH} no\n\nHuman: bye"}),
    ("hh", {"rejected": f"before{HH} no"}),
    ("hh", {"rejected": "\n\nHuman: other\n\nAssistant: no"}),
    *[("pandalm", {"annotator1": bad}) for bad in (True, 3, "1", None, [1])],
    *[("pandalm", {"response1": bad}) for bad in (True, None, "b")],
    *[("rating", {"mean": bad}) for bad in ("1", True, None, float("nan"))],
    *[("rating", {"ratings": bad}) for bad in ([], [1, "x"], [3], 1)],
    ("rating", {"rating": 1.0}),
    ("rating", {"text": ""}),
    ("squality", {"overall-rating": "10"}),
    ("squality", {"worker_id": None}),
]


@pytest.mark.parametrize(("form", "change"), BAD, ids=lambda value: repr(value)[:70])
def test_a_bad_value_is_named_by_file_and_line(form: str, change: dict[str, Any], file: Path) -> None:
    lines(file, BASE[form], "", BASE[form] | change, BASE[form])
    kind = USES[FORMATS[form].holds][0]
    options = {"prompt": "q"} if FORMATS[form].holds == "ratings" else {}
    (problem,) = problems(file, kind, format=form, **options)
    assert problem.startswith(f"{file}:3: ") and len(problem) < 400 + len(str(file))


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_field_is_named(form: str, file: Path) -> None:
    for field in FORMATS[form].fields:
        lines(file, BASE[form], {key: value for key, value in BASE[form].items() if key != field})
        passed = reading(file, None, format=form)
        assert len(list(passed)) > 0 and passed.bad_count == 1
        assert str(passed.bad[0]).startswith(f"{file}:2: no field '{field}'")


@pytest.mark.parametrize("text", ["{", "nonsense", "[]", "3", '"text"', "null", "[" * 100_000, '{"prompt": 1e'])
def test_what_is_no_object_is_named(text: str, file: Path) -> None:
    (problem,) = problems(lines(file, {"prompt": "p"}, text), "prompts")
    assert problem.startswith(f"{file}:2: ") and len(problem) < 400 + len(str(file))


def test_a_name_that_stands_twice_is_named(file: Path) -> None:
    (problem,) = problems(lines(file, {"prompt": "p"}, '{"prompt": "a", "prompt": "b"}'), "prompts")
    assert problem.startswith(f"{file}:2: ") and "field 'prompt' stands twice" in problem


def test_all_problems_are_told_at_once_but_not_without_end(file: Path) -> None:
    lines(file, "{", {"prompt": "p"}, {"prompt": 1})
    assert [problem.split(": ")[0] for problem in problems(file, "prompts")] == [f"{file}:1", f"{file}:3"]
    found = problems(lines(file, *["{"] * 25), "prompts")
    assert len(found) == 11 and found[-1] == f"{file}: 15 more records cannot be used"
