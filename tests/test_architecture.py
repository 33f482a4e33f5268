"""The shape of the repository: who may import whom, what stays free of torch, where packages come from, sizes."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "rlhf": {"rlhf"},
    "data": {"rlhf", "data"},
    "reward_models": {"rlhf", "reward_models"},
    "stages": {"rlhf", "data", "reward_models", "stages"},
    "launch": {"rlhf", "data", "reward_models", "stages", "launch"},
}
IMPORT_TRL = {"stages/sft.py", "stages/supervised.py", "reward_models/trainer.py"}
# What is measured against, in processes of their own: another release, and ours and theirs by turns.
IMPORT_TRL |= {"stages/bench/trl_ppo.py", "stages/bench/trainers.py"}
TORCH_FREE = ["launch", "launch.cli", "rlhf.config", "rlhf.recipe", "rlhf.store.artifact", "rlhf.analysis", "data.toy"]
RECIPES = [file for folder in ("stages", "tests") for file in sorted((ROOT / folder / "recipes").glob("*.yaml"))]


def modules() -> Iterator[tuple[str, Path]]:
    """(package, file) of every module."""
    for package in MAY_IMPORT:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield package, file


def imported(source: str, parents: tuple[str, ...]) -> set[str]:
    """Modules that a source names in any import, those inside functions and for type checkers included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            names.update([module] if module else [alias.name for alias in node.names])
    return names


def roots(file: Path) -> set[str]:
    parents = file.relative_to(ROOT).parent.parts
    return {name.partition(".")[0] for name in imported(file.read_text(encoding="utf-8"), parents)}


def child(code: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if folder != ROOT:
        environment["PYTHONSAFEPATH"] = "1"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_imports_are_found_wherever_they_hide() -> None:
    source = "import a.b as c\ndef f():\n    from d.e import g\n    from . import h\n    from ..i import j\n"
    assert imported(source, ("p", "q")) == {"a.b", "d.e", "p.q", "p.i"}


def test_there_is_something_to_check() -> None:
    assert {package for package, _ in modules()} == MAY_IMPORT.keys()


def test_imports_run_one_way() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for package, file in modules()
        for name in sorted(roots(file) & MAY_IMPORT.keys() - MAY_IMPORT[package])
    ]
    assert not wrong


def test_only_the_border_imports_trl() -> None:
    found = {file.relative_to(ROOT).as_posix() for _, file in modules() if "trl" in roots(file)}
    assert found <= IMPORT_TRL


def test_nothing_imports_the_tests() -> None:
    assert not [file for _, file in modules() if "tests" in roots(file)]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in ('torch', 'transformers', 'trl') if name in sys.modules])"
    assert child(code, ROOT) == "[]\n"


def test_ppo_loads_what_it_needs_alone(tmp_path: Path) -> None:
    """Each of these takes seconds, in every process."""
    code = (
        "import sys, stages.ppo, torch\n"
        "from stages.command import quiet_libraries\n"
        "quiet_libraries()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "shape = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)\n"
        f"LlamaForCausalLM(shape).save_pretrained({str(tmp_path)!r})\n"
        "print([name for name in ('peft', 'bitsandbytes', 'datasets', 'deepspeed', 'trl') if name in sys.modules])"
    )
    assert child(code, ROOT) == "[]\n"


def test_packages_resolve_to_this_repository(tmp_path: Path) -> None:
    """From anywhere: data and launch are common names, and another package may stand in the way."""
    code = (
        "from importlib.util import find_spec\n"
        f"for name in {list(MAY_IMPORT)}:\n"
        "    spec = find_spec(name)\n"
        "    print(name, spec and spec.origin)\n"
    )
    expected = [f"{name} {ROOT / name / '__init__.py'}" for name in MAY_IMPORT]
    assert child(code, tmp_path).splitlines() == expected


def test_there_are_recipes() -> None:
    assert ROOT / "stages/recipes/demo.yaml" in RECIPES


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.parent.name}-{file.stem}")
def test_recipe_loads(file: Path) -> None:
    load_recipe(file)


def test_files_are_at_most_300_lines() -> None:
    lines = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for _, file in modules()}
    assert {file: count for file, count in lines.items() if count > 300} == {}
