"""Every format: what it reads, how it is told, what it can be used as, and that it is written and read back."""

from __future__ import annotations

import csv
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from data.formats import FORMATS, USES, Example, as_record, write_jsonl
from data.inspection import inspect_source
from data.locations import files_of
from data.ratings import Rating
from data.reading import Reading
from rlhf.config import FormatName, SourceConfig
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Prompt
from tests.formats import (
    ANSWER,
    BASE,
    GOOD,
    HH,
    HH_PROMPT,
    MESSAGES,
    OTHER,
    TURNS,
    VOTE,
    P,
    both,
    lines,
    problems,
    reading,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


@pytest.mark.parametrize(("form", "record", "expected"), GOOD, ids=lambda value: str(value)[:50])
def test_records_are_read_and_their_format_is_told(
    form: str, record: dict[str, Any], expected: list[Example], file: Path
) -> None:
    passed = reading(lines(file, record), None)
    assert list(passed) == expected
    assert passed.format is not None and passed.format.name == form
    assert list(reading(file, None, format=form)) == expected  # said by the recipe instead


def test_every_format_is_tried_and_the_recipe_knows_them_all() -> None:
    assert {form for form, *_ in GOOD} == set(FORMATS) == set(typing.get_args(FormatName)) - {"auto"}


def test_what_is_written_is_read_back(file: Path) -> None:
    for holds in USES:
        examples = [example for form, _, found in GOOD for example in found if FORMATS[form].holds == holds]
        assert write_jsonl(file, examples) == len(examples) > 1
        assert list(reading(file, None)) == examples


def test_only_what_is_known_is_written() -> None:
    assert as_record(both(P)) == VOTE
    assert as_record(Rating("t", 1.0)) == {"text": "t", "rating": 1.0}


def test_bad_records_are_dropped_counted_and_said_if_the_recipe_allows(file: Path) -> None:
    passed = reading(lines(file, VOTE, "{", VOTE | {"tie": 1}, VOTE), "comparisons", bad_records="drop")
    assert list(passed) == [both(P), both(P)]
    assert (passed.records, passed.bad_count) == (4, 2)
    format_note, dropped = passed.notes()
    assert "format preference (detected), 4 records, 2 comparisons" in format_note
    assert "dropped 2 bad records" in dropped and f"{file}:2" in dropped and f"{file}:3: tie=1" in dropped
    assert "set bad_records: drop" in problems(file, "comparisons")[0]
    assert f"{file}:1: not JSON" in problems(lines(file, "{", "{"), "comparisons", bad_records="drop")[0]


def test_the_first_are_read_and_no_more(file: Path) -> None:
    lines(file, {"prompt": "1"}, {"prompt": "2"}, "{")
    assert list(reading(file, "prompts", count=2)) == [Prompt("1"), Prompt("2")]
    assert len(problems(file, "prompts", count=3)) == 1


def test_most_of_the_first_records_tell_the_format(file: Path) -> None:
    passed = reading(lines(file, {"prompt": "p"}, VOTE, VOTE), None)
    assert len(list(passed)) == 2 and passed.format == FORMATS["preference"]
    assert passed.bad[0].place == f"{file}:1"
    passed = reading(lines(file, BASE["prompt-completion"], {"prompt": "p"}), "demonstrations", bad_records="drop")
    assert len(list(passed)) == 1 and passed.bad[0].place == f"{file}:2"
    for pair in (BASE["prompt-completion"], {"prompt": "p"}), ({"prompt": "p"}, BASE["prompt-completion"]):
        passed = reading(lines(file, *pair), None)
        assert len(list(passed)) == 1 and passed.format == FORMATS["prompt-completion"]  # of as many, the first counts
    late = [{"prompt": "p"}] * 100 + [VOTE]
    assert len(list(reading(lines(file, *late), "prompts"))) == 101  # a vote has a prompt too


def test_one_cause_in_all_records_is_one_line(file: Path) -> None:
    """Dropping them would drop everything, and is not proposed."""
    lines(file, *[{"question": f"q {i}", "good": "a", "bad": "b"} for i in range(30)])
    (problem,) = problems(file, "comparisons")
    assert "'question', 'good', 'bad'; rename to prompt, chosen, rejected, or see docs/data.md" in problem
    source = SourceConfig.model_construct(path=str(file), format="preference")
    with pytest.raises(DataError) as raised:
        list(Reading(source, files_of(str(file), None), "comparisons"))
    (problem,) = raised.value.problems
    assert (
        "none of its 30 records can be used as preference (no field 'prompt'); their fields are 'question'" in problem
    )
    assert "rename to prompt, chosen, rejected, or see docs/data.md" in problem and "bad_records" not in problem


def test_an_unknown_format_names_the_fields_and_what_was_meant(file: Path) -> None:
    (problem,) = problems(lines(file, {"promt": "p", "answer": 1}), "prompts")
    assert "'promt', 'answer'; did you mean 'prompt' by 'promt'?" in problem and "rename to prompt, or see" in problem
    (problem,) = problems(lines(file, {}), "prompts")
    assert "(none)" in problem
    with pytest.raises(DataError, match="format='hhh' is not known; did you mean hh?"):
        source = SourceConfig.model_construct(path=str(file), format="hhh")
        list(Reading(source, files_of(str(file), None), None))


def test_a_format_that_does_not_hold_the_kind_is_named(file: Path) -> None:
    (problem,) = problems(lines(file, {"prompt": "p"}), "demonstrations")
    assert "format prompt holds prompts, no demonstrations; give demonstrations in one of: pandalm, " in problem
    (problem,) = problems(lines(file, BASE["rating"]), "prompts")
    assert "format rating holds ratings, no prompts" in problem
    (problem,) = problems(lines(file, VOTE), "demonstrations", format="prompt")
    assert "format prompt holds prompts" in problem


def test_demonstrations_are_what_was_preferred_and_ties_prefer_nothing(file: Path) -> None:
    votes = [{"prefers": "chosen"}, {"prefers": "chosen"}, {"prefers": "tie"}]
    silent = VOTE | {"chosen": [{"role": "assistant", "content": ""}]}
    passed = reading(lines(file, VOTE | {"votes": votes}, silent, VOTE | {"chosen_finished": False}), "demonstrations")
    assert list(passed) == [Demonstration(P, "a")]
    assert passed.unused == {"ties": 1, "empty responses": 1, "cut responses": 1}
    assert passed.bad_count == 0
    assert "1 demonstrations from comparisons (prompt and chosen)" in passed.notes()[0]
    assert "1 ties are no demonstrations" in passed.notes()[1]
    (problem,) = problems_of_nothing(lines(file, VOTE | {"tie": True}))
    assert "gives no demonstrations (1 ties are no demonstrations)" in problem


def problems_of_nothing(file: Path) -> list[str]:
    return problems(file, "demonstrations")


def test_a_completion_that_was_rejected_is_no_demonstration(file: Path) -> None:
    """TRL's unpaired preferences."""
    lines(file, *[{"prompt": "p", "completion": text, "label": text == "good"} for text in ("good", "bad", "worse")])
    passed = reading(file, "demonstrations")
    assert list(passed) == [Demonstration(P, "good")]
    assert passed.notes()[-1].endswith("2 rejected completions are no demonstrations")
    assert list(reading(file, "prompts")) == [P, P, P]
    found = inspect_source(SourceConfig(path=str(file)), 0)
    assert (found.examples, found.rejected) == (1, 2) and ("rejected completions", "2") in found.facts()
    for label in (0, 1.0, "False"):
        (problem,) = problems(lines(file, {"prompt": "p", "completion": "c", "label": label}), "demonstrations")
        assert "may say whether the completion was good; write true or false" in problem
    assert list(reading(lines(file, {"prompt": "p", "completion": "c", "label": "news"}), None)) == [
        Demonstration(P, "c")
    ]


def test_a_transcript_may_have_lost_its_first_blank_line(file: Path) -> None:
    record = {"chosen": f"{HH} yes".lstrip("\n"), "rejected": f"{HH} no".lstrip("\n")}
    passed = reading(lines(file, record), None)
    assert list(passed) == [Comparison(HH_PROMPT, "yes", "no")]
    assert passed.format is not None and passed.format.name == "hh"


def test_a_field_without_a_value_is_none(file: Path) -> None:
    unknown = dict.fromkeys(("tie", "weight", "target", "chosen_finished", "annotator", "votes", "system"))
    assert list(reading(lines(file, VOTE | unknown), None)) == [both(P)]
    assert "no field 'chosen'" in problems(lines(file, VOTE, VOTE | {"chosen": None}), "comparisons")[0]


def test_conversations_in_cells_are_json(tmp_path: Path) -> None:
    file = tmp_path / "votes.csv"
    record = {"prompt": TURNS, "chosen": [ANSWER], "rejected": [OTHER]}
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(record)
        table.writerow(json.dumps(value) for value in record.values())
    assert list(reading(file, None)) == [Comparison(Prompt(MESSAGES), "hello", "no")]
    with file.open("a", newline="") as stream:
        csv.writer(stream).writerow(["[{'role': 'user'} begins a turn", "[1, 2]", '[{"name": "x"}]'])
    assert list(reading(file, None))[1:] == [
        Comparison(Prompt("[{'role': 'user'} begins a turn"), "[1, 2]", '[{"name": "x"}]')
    ]
    with file.open("a", newline="") as stream:
        csv.writer(stream).writerow(str(value) for value in record.values())
    (problem,) = problems(file, "comparisons")
    assert f"{file}:4: prompt is a list as Python prints it; write turns as JSON" in problem


def test_prompts_come_from_every_format_that_has_them(file: Path) -> None:
    for form, record, found in GOOD:
        if "prompts" in USES[FORMATS[form].holds]:
            prompts = [example if isinstance(example, Prompt) else example.prompt for example in found]  # type: ignore[union-attr]
            assert list(reading(lines(file, record), "prompts")) == list(dict.fromkeys(prompts))


def test_rated_texts_need_a_prompt_and_nothing_else_takes_one(file: Path) -> None:
    (problem,) = problems(lines(file, BASE["rating"]), "comparisons")
    assert "set prompt" in problem
    (problem,) = problems(lines(file, VOTE), "comparisons", prompt="q")
    assert "remove prompt" in problem
    (problem,) = problems(lines(file, {"prompt": "p", "text": "t", "rating": 1}), "comparisons", prompt="q")
    assert "remove prompt" in problem
