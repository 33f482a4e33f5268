"""Recipes that a test writes, and what is wrong with them."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe

ANY_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def problems(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    assert all("\n" not in line for line in caught.value.problems)
    return list(caught.value.problems)


@pytest.fixture(name="seed")
def recipe_of_a_seed(tmp_path: Path) -> Path:
    return written(tmp_path, "seed: 1\n")
