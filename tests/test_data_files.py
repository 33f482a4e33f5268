import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.files import read_comparisons, read_demonstrations, read_prompts
from data.splits import split_prompts
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Message, Prompt

TURNS = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
MESSAGES = (Message("system", "be kind"), Message("user", "hi"))
ANSWER = {"role": "assistant", "content": "hello"}
PROMPT = {"prompt": "p"}
DEMONSTRATION = {"prompt": "p", "completion": "c"}
COMPARISON = {"prompt": "p", "chosen": "a", "rejected": "b"}
READERS: dict[str, tuple[Callable[[Path], list[Any]], dict[str, Any]]] = {
    "prompts": (read_prompts, PROMPT),
    "demonstrations": (read_demonstrations, DEMONSTRATION),
    "comparisons": (read_comparisons, COMPARISON),
}
every_kind = pytest.mark.parametrize("kind", READERS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


def lines(file: Path, *records: dict[str, Any] | str) -> Path:
    texts = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return file


def problems(kind: str, file: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        READERS[kind][0](file)
    assert all("\n" not in line and line.startswith(str(file)) for line in caught.value.problems)
    return list(caught.value.problems)


def test_prompts_are_texts_or_turns(file: Path) -> None:
    lines(file, {"prompt": " a text\n"}, "", {"prompt": TURNS, "other": 1})
    assert read_prompts(file) == [Prompt(" a text\n"), Prompt(MESSAGES)]


def test_demonstrations_in_both_forms(file: Path) -> None:
    longer = [*TURNS, ANSWER, {"role": "user", "content": "bye"}, {"role": "assistant", "content": "good bye"}]
    lines(file, DEMONSTRATION, {"prompt": TURNS, "completion": [ANSWER]}, {"messages": longer})
    history = Prompt((*MESSAGES, Message("assistant", "hello"), Message("user", "bye")))
    assert read_demonstrations(file) == [
        Demonstration(Prompt("p"), "c"),
        Demonstration(Prompt(MESSAGES), "hello"),
        Demonstration(history, "good bye"),
    ]


def test_comparisons_with_all_that_is_known(file: Path) -> None:
    extra = {"tie": True, "annotator": 7, "weight": 2}
    lines(file, COMPARISON, COMPARISON | extra, {"prompt": TURNS, "chosen": [ANSWER], "rejected": "no"})
    assert read_comparisons(file) == [
        Comparison(Prompt("p"), "a", "b"),
        Comparison(Prompt("p"), "a", "b", tie=True, annotator="7", weight=2.0),
        Comparison(Prompt(MESSAGES), "hello", "no"),
    ]


@every_kind
def test_a_compressed_file_reads_the_same(kind: str, file: Path) -> None:
    read, record = READERS[kind]
    lines(file, record, record | {"prompt": "grüße 日本"})
    packed = file.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert read(packed) == read(file)
    assert read(packed)[1] != read(packed)[0]


BAD_PROMPTS = [
    None,
    1,
    "",
    " \n",
    [],
    ["hi"],
    {"role": "user"},
    [{"role": "robot", "content": "x"}],
    [{"role": "user"}],
]
BAD_RESPONSES = [None, True, "", "  ", [], [{"role": "assistant", "content": None}]]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *[(kind, {"prompt": bad}) for kind in READERS for bad in BAD_PROMPTS],
        *[("demonstrations", {"completion": bad}) for bad in BAD_RESPONSES],
        *[("comparisons", {field: bad}) for field in ("chosen", "rejected") for bad in BAD_RESPONSES],
        *[("comparisons", {"weight": bad}) for bad in (-1, "1", True, None, float("nan"), float("inf"), 10**400)],
        *[("comparisons", {"tie": bad}) for bad in (1, "true", None)],
        ("comparisons", {"rejected": "a"}),
        ("comparisons", {"chosen": [{"role": "user", "content": "not an answer"}]}),
        *[("demonstrations", {"messages": bad}) for bad in (None, [], "x", TURNS, [ANSWER], [*TURNS, "x"])],
        ("demonstrations", {"messages": [*TURNS, {"role": "assistant", "content": " "}]}),
        *[(kind, {"prompt": "half a pair: \ud800"}) for kind in READERS],
    ],
    ids=lambda value: repr(value)[:70],
)
def test_a_bad_value_is_named_by_file_and_line(kind: str, change: dict[str, Any], file: Path) -> None:
    record = READERS[kind][1]
    lines(file, record, "", record | change, record)
    (problem,) = problems(kind, file)
    assert problem.startswith(f"{file}:3: ")


@every_kind
def test_a_missing_field_is_named(kind: str, file: Path) -> None:
    for field in READERS[kind][1]:
        lines(file, READERS[kind][1], {key: value for key, value in READERS[kind][1].items() if key != field})
        (problem,) = problems(kind, file)
        assert problem.startswith(f"{file}:2: no field '{field}'")


@every_kind
@pytest.mark.parametrize("text", ["{", "nonsense", "[]", "3", '"text"', "null", "[" * 100_000])
def test_what_is_no_object_is_named(kind: str, text: str, file: Path) -> None:
    lines(file, READERS[kind][1], text)
    (problem,) = problems(kind, file)
    assert problem.startswith(f"{file}:2: ") and len(problem) < 500


def test_all_problems_are_told_at_once_but_not_without_end(file: Path) -> None:
    lines(file, "{", PROMPT, {"prompt": 1})
    assert [problem.split(": ")[0] for problem in problems("prompts", file)] == [f"{file}:1", f"{file}:3"]
    found = problems("prompts", lines(file, *["{"] * 25))
    assert len(found) == 11 and found[-1] == f"{file}: 15 more records cannot be used"


@every_kind
def test_files_that_are_not_there_or_empty(kind: str, file: Path) -> None:
    assert "no such file" in problems(kind, file)[0]
    assert "no such file" in problems(kind, file.parent)[0]
    file.write_text("\n \n")
    assert "no records" in problems(kind, file)[0]


PACKED = gzip.compress(b'{"prompt": "a text long enough to be packed"}\n' * 50)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin1.jsonl", b'{"prompt": "gr\xfc\xdfe"}\n'),
        ("latin1.jsonl.gz", gzip.compress(b'{"prompt": "gr\xfc\xdfe"}\n')),
        ("plain.jsonl.gz", b'{"prompt": "p"}\n'),
        ("cut.jsonl.gz", PACKED[:-12]),
        ("flipped.jsonl.gz", PACKED[:10] + b"\xff" + PACKED[11:]),
        ("checksum.jsonl.gz", PACKED[:-8] + b"\0" * 8),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_text_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (problem,) = problems("prompts", tmp_path / name)
    assert "cannot be read as text" in problem


def test_what_was_read_can_be_split(file: Path) -> None:
    """Characters outside the basic plane come as two escapes, which make one character."""
    lines(file, '{"prompt": "\\ud83d\\ude00"}', {"prompt": "\x00 \u2028"})
    assert len(read_prompts(file)) == 2
    split = split_prompts(read_prompts(file), 0.5)
    assert len(split.train) + len(split.test) == 2
