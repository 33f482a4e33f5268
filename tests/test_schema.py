"""The recipe's JSON schema: it takes what the reader takes, refuses what the reader refuses, and is never stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from launch.commands.schema import write_schema
from rlhf.config import LoraConfig, Recipe, RewardConfig, Section
from rlhf.errors import ConfigError
from rlhf.recipe import _ALL_PATHS, _parsed, load_recipe, resolved_yaml
from rlhf.schema import MODELINE, comments_of, modeline, recipe_schema, schema_text, sections_of
from rlhf.settings import settings_markdown

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "stages" / "recipes" / "recipe.schema.json"
RECIPES = [file for folder in ("stages", "tests") for file in sorted((ROOT / folder / "recipes").glob("*.yaml"))]
SCHEMA = Draft202012Validator(recipe_schema())


def accepted(text: str) -> bool:
    return bool(SCHEMA.is_valid(_parsed(text, "recipe.yaml")))


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.parent.name}-{file.stem}")
def test_a_recipe_fits_as_written_and_resolved_and_names_the_schema(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert accepted(text)
    assert accepted(resolved_yaml(load_recipe(file)))
    first = text.splitlines()[0]
    assert first == modeline(file, SHIPPED)
    assert (file.parent / first.removeprefix(MODELINE)).resolve() == SHIPPED


def test_the_shipped_schema_is_the_present_one() -> None:
    shipped = SHIPPED.read_text(encoding="utf-8")
    assert shipped == schema_text(), "run: rlhf schema --output stages/recipes/recipe.schema.json"


def test_the_page_of_settings_is_the_present_one() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_markdown(), "run: rlhf schema --markdown --output docs/settings.md"


def test_the_page_has_every_setting_with_its_values_default_and_comment() -> None:
    page = settings_markdown()
    named = {name.replace(".N.", ".0.") for name in re.findall(r"^\| `([\w.]+)`", page, re.M)}
    # As data.demonstrations, parallelism and data.check.malformed.
    elsewhere = re.compile(r"data\.(comparisons|prompts)\.0|\w+\.parallelism\.|data\.check\.\w+\.")
    missing = [path for path in _ALL_PATHS if path not in named and not elsewhere.match(path)]
    assert [path for path in missing if not any(name.startswith(f"{path}.") for name in named)] == []
    assert "| `ppo.kl.coef` | number ≥ 0 | `0.05` | beta, reward per nat |" in page
    assert "| `model.lora.quantization` | `nf4`, `int8`; null | `null` | of the frozen" in page
    assert "| `data.demonstrations.N.path` | text | required | toy, stories" in page
    assert '| `data.prompts` | a list, as `data.demonstrations` | `[{"path": "toy"}]` |' in page


@pytest.mark.parametrize(
    "text",
    [
        "sft: {learning_rate: 1e-3}",
        "sft: {learning_rate: 1}",
        "sft: {use: org/name@0123}\nreward: {use: 'http://127.0.0.1:8000'}",
        "base: other.yaml\ntracking: {mlflow: {experiment: mine}}",  # the base gives its uri
        "parallelism: {processes: auto}\nppo: {parallelism: {processes: 2}}",
        "model: {lora: null, activation_checkpointing: true}",
    ],
)
def test_what_a_recipe_may_say(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("tracking: {mlflow: {uri: somewhere}}")
    (tmp_path / "recipe.yaml").write_text(text)
    load_recipe(tmp_path / "recipe.yaml")
    assert accepted(text)


@pytest.mark.parametrize(
    "text",
    [
        "sed: 1",
        "ppo: {kl_coef: 0.1}",
        "ppo: {steps: '5'}",
        "ppo: {steps: 0}",
        "ppo: {gamma: 1.5}",
        "ppo: {generation: {engine: other}}",
        "model: null",
        "model: {dtype: fp16}",
        "name: ../up",
        "data: {prompts: toy}",
        "data: {prompts: []}",
        "data: {prompts: [{count: 5}]}",
        "parallelism: {processes: many}",
        "reward: {label_smoothing: 0.5}",
        "base: [a]",
    ],
)
def test_what_a_recipe_may_not_say(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "recipe.yaml")
    assert not accepted(text)


def test_every_field_is_there_with_what_its_source_says() -> None:
    schema = recipe_schema()
    described = 0
    for section in sections_of(Recipe):
        definition = schema if section is Recipe else schema["$defs"][section.__name__]
        assert set(definition["properties"]) - {"base"} == set(section.model_fields)
        for name, text in comments_of(section).items():
            assert definition["properties"][name]["description"] == text
            described += 1
    assert described > 50


def test_comments_above_behind_and_inherited() -> None:
    comments = comments_of(RewardConfig)
    assert comments["use"].startswith("A reward to take instead of training one: a reward model (a directory")
    assert comments["use"].endswith("the address, is fingerprinted.")
    assert comments["center"] == "weight of (r_chosen + r_rejected)^2, Eisenstein et al. 2023"
    assert comments["batch_size"] == "examples per optimizer step, over all ranks"  # of the base
    assert "epochs" not in comments


def test_a_comment_belongs_to_the_field_it_touches() -> None:
    assert comments_of(Apart) == {"second": "above it behind it", "third": "over two lines"}
    assert comments_of(Below) == {"second": "its own", "third": "over two lines"}


class Apart(Section):
    """For the test above."""

    # of nothing: an empty line follows

    first: str = "# no comment"
    # above it
    second: int = 1  # behind it
    third: list[int] = [
        1,  # over
    ]  # two lines


class Below(Apart):
    """Says something else of one field."""

    second: int = 2  # its own
    third: list[int] = [2]


def test_a_section_without_a_source_has_no_comments() -> None:
    made = type("Made", (Section,), {"__annotations__": {"field": int}})
    assert comments_of(made) == {}


def test_the_command_writes_whole_and_only_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "recipe.schema.json"
    write_schema(path)
    assert path.read_text() == schema_text()
    written = path.stat().st_mtime_ns
    write_schema(path)
    assert path.stat().st_mtime_ns == written
    path.write_text("stale")
    write_schema(path)
    assert path.read_text() == schema_text()


def test_optional_sections_may_be_null() -> None:
    assert {"$ref": f"#/$defs/{LoraConfig.__name__}"} in recipe_schema()["$defs"]["ModelConfig"]["properties"]["lora"][
        "anyOf"
    ]
