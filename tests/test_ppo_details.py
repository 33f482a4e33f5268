"""docs/ppo.md names a file and a test for each detail: they must exist, and the file must be spoken of truly."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8").splitlines()
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in LINES if line.startswith("| **")]


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split("**")[1])
def test_a_detail_has_a_reason_a_file_and_a_test(row: list[str]) -> None:
    detail, why, file, tests = row
    assert detail.startswith("**") and why
    assert (ROOT / file).is_file(), file
    for test in tests.split("<br>"):
        path, _, name = test.partition("::")
        assert name.startswith("test_") and name in names_in(path), test


def test_the_table_is_whole() -> None:
    assert len(ROWS) >= 45
    assert len({row[0] for row in ROWS}) == len(ROWS)
