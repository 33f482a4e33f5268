"""Whatever is fed to the loader, a recipe or a ConfigError comes out."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipes_written import ANY_FILE, recipe_of_a_seed, written  # noqa: F401  # the fixture `seed`

from rlhf.config import Recipe
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe, resolved_yaml

plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.dates(), st.binary())
known = st.sampled_from([*Recipe.model_fields, "base", "kl", "coef", "prompts", "path", "lora", "rank", "steps", "0"])
garbage = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(known, plain), inner, max_size=4)),
    max_leaves=12,
)


def loads_or_explains(path: Path, *overrides: str) -> None:
    try:
        recipe = load_recipe(path, overrides)
    except ConfigError as error:
        assert error.problems
        assert all(line and "\n" not in line for line in error.problems)
    else:
        assert isinstance(recipe, Recipe)


@ANY_FILE
@given(tree=st.one_of(garbage, st.dictionaries(known, garbage, max_size=4)))
def test_any_tree_loads_or_is_a_config_error(tmp_path: Path, tree: Any) -> None:
    loads_or_explains(written(tmp_path, yaml.safe_dump(tree, allow_unicode=True)))


@ANY_FILE
@given(content=st.one_of(st.binary(), st.text(alphabet="ab: \n-[]{}&*!<>|'\"%@`#,?~0x1e_.=\t").map(str.encode)))
def test_any_bytes_load_or_are_a_config_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bytes.yaml").write_bytes(content)
    loads_or_explains(tmp_path / "bytes.yaml")


@ANY_FILE
@given(keys=st.lists(st.one_of(known, st.text(max_size=4)), max_size=4), value=st.text(max_size=8))
def test_any_override_loads_or_is_a_config_error(seed: Path, keys: list[str], value: str) -> None:
    loads_or_explains(seed, ".".join(keys) + "=" + value, ".".join(keys), value)


@ANY_FILE
@given(
    rate=st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    path=st.text(st.characters(codec="utf-8")),
    seed_value=st.integers(0, 2**31 - 1),
)
def test_any_recipe_survives_resolved_yaml(tmp_path: Path, rate: float, path: str, seed_value: int) -> None:
    values = {"seed": seed_value, "sft": {"learning_rate": rate}, "data": {"prompts": [{"path": path}]}}
    recipe = Recipe.model_validate(values)
    assert load_recipe(written(tmp_path, resolved_yaml(recipe))) == recipe
