"""Sections refuse settings that they would not use."""

from pathlib import Path

import pytest

from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("{path: on-policy}", "path=on-policy needs a labeller"),
        ("{path: toy, labeller: a.b:c}", "no other source takes one"),
        ("{path: x.jsonl, held_out: 5}", "other sources hold out by test_fraction"),
    ],
)
def test_a_source_takes_only_what_it_uses(source: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"data: {{comparisons: [{source}]}}")
    with pytest.raises(ConfigError, match=remedy):
        load_recipe(tmp_path / "recipe.yaml")
