"""Whatever happens to a file of examples: a DataError of single lines, or every record accounted for; nothing else.

What a fuzzer found, and what people break by hand, is kept in tests/corpus/data and read again by the last test. A
longer search: `RLHF_FUZZ_EXAMPLES=20000 pytest tests/test_data_fuzz.py`.
"""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.fields import ROLES
from data.formats import FORMATS, Example, as_record
from data.locations import files_of
from data.ratings import Rating
from data.reading import Reading
from data.records import read_records
from rlhf.config import SourceConfig
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Prompt
from tests.damage import FILES, JSONL, RECORDS, ROWS, Damage, anything, damage

CORPUS = Path(__file__).parent / "corpus" / "data"
FUZZ = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=int(os.environ.get("RLHF_FUZZ_EXAMPLES", "60")),
)
every_file = pytest.mark.parametrize("name", FILES)


def outcome(path: Path, kind: str | None = None, form: str = "auto") -> tuple[Reading, list[Example]] | DataError:
    """What reading gives; fails on whatever is neither an error of single lines nor a full account."""
    source = SourceConfig.model_validate({"path": str(path), "format": form, "bad_records": "drop", "prompt": None})
    reading = Reading(source, files_of(str(path), None), kind)
    try:
        examples = list(reading)
    except DataError as error:
        assert error.problems
        for problem in error.problems:
            assert problem and problem.isprintable() and len(problem) < 1500, problem
        return error
    assert reading.examples == len(examples)
    for made in examples:
        assert_well_formed(made)
    for line in (*reading.problems(), *reading.notes()):
        assert line.isprintable() and len(line) < 3000, line
    assert 0 <= reading.bad_count <= reading.records
    good = reading.records - reading.bad_count
    assert len(examples) >= good  # each good record gives one at least
    return reading, examples


def assert_well_formed(made: Example) -> None:
    """Exactly what the types say; in particular texts that a tokenizer takes."""
    prompt = made if isinstance(made, Prompt) else made.prompt
    turns = [] if prompt is None or isinstance(prompt.content, str) else list(prompt.content)
    assert all(turn.role in ROLES.values() for turn in turns)
    texts = [turn.content for turn in turns] + ([prompt.content] if prompt and isinstance(prompt.content, str) else [])
    if isinstance(made, Demonstration):
        texts.append(made.completion)
        assert made.completion.strip()
    if isinstance(made, Rating):
        texts.append(made.text)
        assert type(made.score) is float and math.isfinite(made.score) and made.text.strip()
    if isinstance(made, Comparison):
        texts += [made.chosen, made.rejected]
        assert made.chosen != made.rejected
        assert type(made.tie) is bool and type(made.chosen_finished) is bool and type(made.rejected_finished) is bool
        assert type(made.weight) is float and 0 <= made.weight < math.inf
        assert type(made.target) is float and 0.5 < made.target <= 1 and (made.target == 1 or not made.tie)
        assert made.seconds is None or 0 <= made.seconds < math.inf
    for text in texts:
        assert isinstance(text, str)
        text.encode()


@every_file
@FUZZ
@given(damages=st.lists(damage, min_size=1, max_size=3))
def test_damaged_bytes(name: str, damages: list[Damage], tmp_path: Path) -> None:
    content = FILES[name]
    for change in damages:
        content = change(content)
    (tmp_path / name).write_bytes(content)
    found = outcome(tmp_path / name)
    if isinstance(found, DataError):
        return
    reading, examples = found
    if name == "a.jsonl":
        assert_lines_are_accounted_for(content, reading, examples)
    if name == "a.json" and not content.lstrip(b"\xef\xbb\xbf \n\t\r").startswith(b"{"):
        assert reading.records == len(json.loads(content.decode("utf-8-sig")))
    if name == "a.parquet":
        assert reading.records == pyarrow.parquet.read_metadata(tmp_path / name).num_rows
    if name == "a.arrow" or (name == "a.jsonl.gz" and content.startswith(FILES[name][:20])):
        assert reading.records == len(ROWS)  # framed and, packed, checksummed: all of it or nothing


def assert_lines_are_accounted_for(content: bytes, reading: Reading, examples: list[Example]) -> None:
    """Every line with something in it is a record, and those that were not touched come out as they were."""
    lines = [line for line in content.split(b"\n") if line.decode("utf-8-sig").strip()]
    assert reading.records == len(lines)
    if reading.format == FORMATS["preference"]:
        untouched = [json.loads(line) for line in lines if line in JSONL.split(b"\n")]
        expected = [Comparison(Prompt(r["prompt"]), r["chosen"], r["rejected"], weight=r["weight"]) for r in untouched]
        assert [made for made in examples if made in expected] == expected


@every_file
@FUZZ
@given(content=st.binary(max_size=200))
@example(content=b"")
def test_any_bytes(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    outcome(tmp_path / name)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@pytest.mark.parametrize("form", FORMATS)
@FUZZ
@given(data=st.data())
def test_damaged_records(form: str, data: st.DataObject, tmp_path: Path) -> None:
    """Wrong types, wrong nesting and missing fields, between two good records that must come out."""
    record = copy.deepcopy(RECORDS[form])
    for _ in range(data.draw(st.integers(1, 2))):
        if found := places(record):
            container, key = found[data.draw(st.integers(0, len(found) - 1))]
            if data.draw(st.booleans()) or isinstance(container, list):
                container[key] = data.draw(anything)
            else:
                del container[key]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, (RECORDS[form], record, RECORDS[form]))))
    expected = list(FORMATS[form].parse(RECORDS[form]))
    for given_form in ("auto", form):
        found_all = outcome(path, None, given_form)
        assert not isinstance(found_all, DataError)
        reading, examples = found_all
        assert reading.records == 3
        assert examples[: len(expected)] == expected == examples[-len(expected) :]
        assert reading.bad_count == (len(examples) == 2 * len(expected))
        own = tmp_path / "own.jsonl"
        own.write_text("\n".join(json.dumps(as_record(made)) for made in examples))
        again = outcome(own)
        assert not isinstance(again, DataError) and again[1] == examples


@FUZZ
@given(record=st.dictionaries(st.sampled_from(sorted({k for r in RECORDS.values() for k in r})), anything, max_size=5))
def test_any_record_as_any_kind(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    for kind in (None, "prompts", "demonstrations", "comparisons"):
        outcome(path, kind)


def test_the_files_are_sound_to_begin_with(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
        found = outcome(tmp_path / name)
        assert not isinstance(found, DataError)
        assert (found[0].records, found[0].bad_count, len(found[1])) == (20, 0, 20)
        assert [as_record(made) for made in found[1]] == ROWS


OUTCOMES: dict[str, Any] = json.loads((CORPUS / "outcomes.json").read_text())


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_corpus(name: str) -> None:
    """(good, bad) records, or what the error says."""
    found = outcome(CORPUS / name)
    expected = OUTCOMES[name]
    if isinstance(found, DataError):
        assert isinstance(expected, str) and expected in str(found)
    else:
        reading, _ = found
        assert [reading.records - reading.bad_count, reading.bad_count] == expected


def test_the_whole_corpus_is_read() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*OUTCOMES, "outcomes.json"}
    assert sum(1 for file in files_of(str(CORPUS / "twice.jsonl"), None) for _ in read_records(file)) == 2
