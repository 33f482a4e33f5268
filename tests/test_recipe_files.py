"""What the YAML of a recipe may be, and how what it may not be is named."""

from pathlib import Path

import pytest
from recipes_written import problems, written

from rlhf.recipe import load_recipe


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("seed: 1\nppo:\n  steps: 3\n  steps: 4\n", (4, 3), "the key 'steps' was already given in line 3"),
        ("seed: 1\n'seed': 2\n", (2, 1), "the key 'seed' was already given in line 1"),
        ("{seed: 1, seed: 2}", (1, 11), "the key 'seed' was already given in line 1"),
        ("seed: 1\n ppo: 3\n", (2, 5), "mapping values are not allowed here"),
        ("ppo:\n\tsteps: 3\n", (2, 1), "found character '\\t' that cannot start any token"),
        ("seed: 1\n---\nseed: 2\n", (2, 1), "expected a single document in the stream, but found another document"),
        ("seed: !!python/object:os.system x", (1, 7), "could not determine a constructor for the tag"),
        ("name: x\nseed: !!int abc", (2, 7), "'abc' is no int"),
        ("seed: 0x_", (1, 7), "'0x_' is no int"),
        ("seed: !!timestamp [1]", (1, 7), ""),
        ("? [a]\n: b", (1, 3), "found unhashable key"),
        ("seed: 1\nname: a\x07b", (2, 8), "the character U+0007 is not allowed"),
        ("[" * 20_000, (1, 1), "nested too deeply"),
    ],
)
def test_yaml_errors_name_line_and_column(tmp_path: Path, text: str, where: tuple[int, int], what: str) -> None:
    file = written(tmp_path, text)
    (line,) = problems(file)
    assert what in line
    if "timestamp" not in text:
        assert line.startswith(f"{file}, line {where[0]}, column {where[1]}: ")
        assert line.endswith("; correct the YAML there")


def test_merge_keys_may_be_overridden_and_aliases_may_recur(tmp_path: Path) -> None:
    text = "sft: &stage {batch_size: 8, epochs: 2.0}\nreward: {<<: *stage, epochs: 1.0}"
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.reward.batch_size, recipe.reward.epochs) == (8, 1.0)
    unknown, nested, steps = problems(written(tmp_path, "ppo: &p {kl: *p, steps: &l [*l]}"))
    assert "ppo.kl.kl=" in unknown
    assert "ppo.kl.steps=" in nested
    assert "ppo.steps=[[" in steps


@pytest.mark.parametrize("text", ["", "# nothing\n", "null", "---\n"])
def test_empty_files(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)
    assert problems(file) == [f"{file}: is empty; write keys and values, for example seed: 0"]


@pytest.mark.parametrize("text", ["[1]", "5", "text", "2026-01-31", "!!set {a}"])
def test_files_that_hold_no_mapping(tmp_path: Path, text: str) -> None:
    (line,) = problems(written(tmp_path, text))
    assert line.endswith(", no mapping; write keys and values, for example seed: 0")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (line,) = problems(tmp_path / "gone.yaml")
    assert line.startswith(f"{tmp_path / 'gone.yaml'}: cannot be read (No such file or directory); give a recipe file")
    assert "demo" in line
    assert "cannot be read (Is a directory)" in problems(tmp_path)[0]
    assert "cannot be read" in problems("a\0b")[0]
    assert "cannot be read" in problems("x" * 5000)[0]
    (tmp_path / "latin.yaml").write_bytes("seed: 1\nname: caf\xe9\n".encode("latin-1"))
    assert problems(tmp_path / "latin.yaml") == [
        f"{tmp_path / 'latin.yaml'}: line 2 is not UTF-8 text; save the file as UTF-8"
    ]


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_recipe(tmp_path / "bom.yaml").seed == 3
