"""What tests of `rlhf init` begin with: files of examples, a directory like a model, the recipe that is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from data import toy
from launch.proposal.beginning import Wishes, begin, write
from rlhf.config import Recipe
from rlhf.recipe import load_recipe
from tests.qwen import QWEN_05B

SCHEMA = Path(".rlhf/recipe.schema.json")


def write_examples(folder: Path) -> None:
    """Demonstrations, votes and prompts."""
    prompts = toy.prompts()[:300]
    files: dict[str, Sequence[dict[str, str]]] = {
        "demonstrations": [
            {"prompt": d.prompt.text, "completion": d.completion} for d in toy.demonstrations(256, 0, prompts)
        ],
        "votes": [
            {"prompt": c.prompt.text, "chosen": c.chosen, "rejected": c.rejected}
            for c in toy.comparisons(256, 0, prompts).records
        ],
        "prompts": [{"prompt": prompt.text} for prompt in prompts],
    }
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))


def model_like(path: Path, changes: dict[str, object]) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(QWEN_05B | changes))
    (path / "tokenizer_config.json").write_text("{}")
    bytes_of_weights = 2 * 494_032_768
    tensor = {"dtype": "BF16", "shape": [494_032_768], "data_offsets": [0, bytes_of_weights]}
    header = json.dumps({"w": tensor}).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + bytes_of_weights)  # sparse: takes no room
    return path.name


@pytest.fixture(name="folder")
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with demonstrations, votes and prompts."""
    write_examples(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(name="model")
def half_b(folder: Path) -> str:
    """A directory that looks like a model of 0.5 B weights from outside; nothing here loads one."""
    return model_like(folder / "Half-B", {})


def made(path: str = "my.yaml", force: bool = False, **wishes: object) -> Recipe:
    """The recipe that is written, through all checks."""
    proposal = begin(Wishes(path=Path(path), **wishes), SCHEMA, lambda line: None)  # type: ignore[arg-type]
    write(proposal, Path(path), force)
    return load_recipe(path)
