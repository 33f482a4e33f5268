import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from recipes_written import problems, recipe_of_a_seed, written  # noqa: F401  # the fixture `seed`

from rlhf.config import Recipe
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe, resolved_yaml


def test_values_reach_the_recipe_and_the_rest_is_default(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, "name: x\nppo: {kl: {coef: 0.2}}\n"))
    assert (recipe.name, recipe.ppo.kl.coef) == ("x", 0.2)
    assert recipe.sft == Recipe().sft


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1E5", 1e5), ("2.5e3", 2500.0), ("+1.e-2", 0.01), (".5e1", 5.0), ("0.1", 0.1), ("3", 3.0)],
)
def test_floats_as_people_write_them(seed: Path, text: str, value: float) -> None:
    assert load_recipe(seed, [f"sft.learning_rate={text}"]).sft.learning_rate == value


def test_negative_floats_are_numbers_too(seed: Path) -> None:
    assert problems(seed, "sft.learning_rate=-2.5e3") == [
        "override: sft.learning_rate=-2500.0 should be greater than or equal to 0; the default is 0.001"
    ]


@pytest.mark.parametrize("text", ["e5", "1e", "v1e5", "1e5x", "2026-01-31", "1.2.3"])
def test_what_only_resembles_a_number_stays_text(seed: Path, text: str) -> None:
    assert load_recipe(seed, [f"model.path={text}"]).model.path == text


def test_unknown_key_is_answered_with_the_path_that_was_meant(tmp_path: Path) -> None:
    file = written(tmp_path, "ppo:\n  kl_coef: 0.05\n")
    assert problems(file) == [f"{file}: ppo.kl_coef=0.05 is not a known key; did you mean ppo.kl.coef?"]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("sft.epoch=1", "did you mean sft.epochs?"),
        ("ppo.kl.coeff=1", "did you mean ppo.kl.coef?"),
        ("kl_coef=1", "did you mean ppo.kl.coef?"),
        ("ppo.temperature=1", "did you mean ppo.generation.temperature?"),
        ("max_length=3", "did you mean sft.max_length or reward.max_length?"),
        ("data.prompts.0.cuont=5", "did you mean data.prompts.0.count?"),
        ("model.lora.xyz=1", "known keys of model.lora: rank, alpha, quantization"),
        ("xyz=1", "model, data, sft, reward, ppo, evaluate, checkpoint, tracking, parallelism, watchdog, labelling"),
    ],
)
def test_hints_for_unknown_keys(seed: Path, override: str, hint: str) -> None:
    (line,) = problems(seed, override)
    assert line.startswith(f"override: {override} is not a known key; ")
    assert line.endswith(hint)


def test_dotted_keys_in_a_file_are_to_be_nested(tmp_path: Path) -> None:
    (line,) = problems(written(tmp_path, "ppo.kl.coef: 0.1"))
    assert line.endswith("ppo.kl.coef=0.1 is not a known key; write ppo: {kl: {coef: ...}}")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("ppo.steps='5'", "ppo.steps='5' should be a valid integer; write 5 without quotes"),
        ("ppo.gamma='1e-1'", "ppo.gamma='1e-1' should be a valid number; write 1e-1 without quotes"),
        ("ppo.steps=1e2", "ppo.steps=100.0 should be a valid integer; write 100"),
        ("ppo.steps=true", "ppo.steps=true should be a valid integer; the default is 150"),
        ("ppo.steps.x=1", "ppo.steps={'x': 1} should be a valid integer; the default is 150"),
        ("ppo.gamma=1.5", "ppo.gamma=1.5 should be less than or equal to 1; the default is 1.0"),
        ("ppo.gamma=.nan", "ppo.gamma=nan should be a finite number; the default is 1.0"),
        ("model.path=5", "model.path=5 should be a valid string; the default is null"),
        ("model.dtype=fp16", "model.dtype=fp16 should be 'auto', 'float32' or 'bfloat16'; the default is auto"),
        ("model=", "model=null should be a mapping of keys; leave it out for the default"),
        ("model=5", "model=5 should be a mapping of keys"),
        ("data.prompts=toy", "data.prompts=toy should be a valid list"),
        ("data.prompts=[{count: 5}]", "data.prompts.0.path is missing; add it"),
        (
            "parallelism.processes=many",
            "parallelism.processes=many should be a valid integer or be 'auto'; the default is auto",
        ),
    ],
)
def test_wrong_values_name_field_value_and_remedy(seed: Path, override: str, line: str) -> None:
    assert problems(seed, override) == [f"override: {line}"]


def test_sections_that_contradict_themselves_say_how_to_mend_them(tmp_path: Path) -> None:
    file = written(tmp_path, "ppo: {prompts_per_step: 10, minibatches: 3}\nmodel: {init: {hidden_size: 30, heads: 4}}")
    assert problems(file) == [
        f"{file}: model.init.hidden_size=30 does not split into heads=4 of even width; use hidden_size=24",
        f"{file}: ppo.prompts_per_step=10 does not split into minibatches=3; use prompts_per_step=9",
    ]


def test_a_contradiction_that_a_misspelled_key_may_explain_is_not_reported(seed: Path) -> None:
    assert len(problems(seed, "ppo.kl.target=6.0", "ppo.kl.contoller=adaptive")) == 1


def test_all_problems_come_at_once_each_with_its_origin(tmp_path: Path) -> None:
    written(tmp_path, "sed: 1\nppo: {steps: -1}\n", "base.yaml")
    file = written(tmp_path, "base: base.yaml\nsft: {epochs: a, batch_size: 0}\n")
    assert problems(file, "nonsense", "seed=x", "ppo.kl=[") == [
        f"{tmp_path / 'base.yaml'}: sed=1 is not a known key; did you mean seed?",
        "override nonsense is not key=value; write it like ppo.kl.coef=0.05",
        "override ppo.kl, line 1, column 2: while parsing a flow node, expected the node content, "
        "but found '<stream end>'; correct the YAML there",
        "override: seed=x should be a valid integer; the default is 0",
        f"{file}: sft.epochs=a should be a valid number; the default is 3.0",
        f"{file}: sft.batch_size=0 should be greater than or equal to 1; the default is 64",
        f"{tmp_path / 'base.yaml'}: ppo.steps=-1 should be greater than or equal to 1; the default is 150",
    ]


def test_base_is_merged_deeply_along_a_chain_of_folders(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    written(
        tmp_path / "shared", "seed: 1\nppo: {kl: {coef: 0.3}, steps: 7}\ndata: {prompts: [{path: a.jsonl}]}", "a.yaml"
    )
    written(tmp_path / "shared", "base: a.yaml\nppo: {kl: {horizon: 5}}\nmodel: {lora: {rank: 2}}", "b.yaml")
    child = "base: shared/b.yaml\nppo: {steps: 9}\nmodel: {lora: null}\ndata: {prompts: [{path: b.jsonl}]}"
    recipe = load_recipe(written(tmp_path, child))
    assert (recipe.seed, recipe.ppo.steps, recipe.ppo.kl.coef, recipe.ppo.kl.horizon) == (1, 9, 0.3, 5)
    assert recipe.model.lora is None
    assert [source.path for source in recipe.data.prompts] == ["b.jsonl"]


def test_bases_in_a_circle_are_named(tmp_path: Path) -> None:
    first, second = written(tmp_path, "base: b.yaml", "a.yaml"), written(tmp_path, "base: ./a.yaml", "b.yaml")
    (line,) = problems(first)
    assert line == (
        f"{second}: base='./a.yaml' closes a circle, {first} -> {second} -> {first}; remove one of these bases"
    )
    assert "closes a circle" in problems(written(tmp_path, "base: self.yaml", "self.yaml"))[0]


def test_a_base_that_is_no_recipe(tmp_path: Path) -> None:
    file = written(tmp_path, "base: [a]\n")
    assert problems(file) == [f"{file}: base=['a'] should be the path of a recipe, relative to this one"]
    file = written(tmp_path, "base: gone.yaml\nsed: 1")
    missing, unknown = problems(file)
    assert missing.startswith(f"{tmp_path / 'gone.yaml'} (base of {file}): cannot be read (No such file or directory)")
    assert unknown == f"{file}: sed=1 is not a known key; did you mean seed?"


def test_overrides_of_list_items(tmp_path: Path, seed: Path) -> None:
    assert load_recipe(seed, ["data.prompts.0.count=5"]).data.prompts[0].model_dump() == {
        **Recipe().data.prompts[0].model_dump(),
        "count": 5,
    }
    file = written(tmp_path, "data: {prompts: &p [{path: a}, {path: b}], comparisons: *p}", "list.yaml")
    recipe = load_recipe(file, ["data.prompts.1.count=5", "data.prompts.0.path=c"])
    assert [(source.path, source.count) for source in recipe.data.prompts] == [("c", None), ("b", 5)]
    assert [(source.path, source.count) for source in recipe.data.comparisons] == [("a", None), ("b", None)]
    for index in ("2", "-1", "x", "٠", "9" * 5000):
        (line,) = problems(file, f"data.prompts.{index}.count=5")
        assert line.endswith("names no item of data.prompts; its indexes are 0, 1")


def test_an_override_does_not_hide_a_list_that_is_none(tmp_path: Path) -> None:
    lines = problems(written(tmp_path, "data: {prompts: toy}"), "data.prompts.0.count=5")
    assert any("data.prompts=toy should be a valid list" in line for line in lines)


def test_overrides_win_in_order_and_merge_mappings(seed: Path) -> None:
    recipe = load_recipe(
        seed, ["ppo.kl.coef=1", "ppo.kl.coef=2", "ppo.kl={horizon: 3}", "model.lora.rank=4", "seed = 9"]
    )
    assert (recipe.ppo.kl.coef, recipe.ppo.kl.horizon, recipe.seed) == (2.0, 3, 9)
    assert recipe.model.lora is not None
    assert recipe.model.lora.rank == 4
    assert load_recipe(seed, ["model.lora.rank=4", "model.lora="]).model.lora is None
    assert load_recipe(seed, ["evaluate.gold=a.b=c:d"]).evaluate.gold == "a.b=c:d"


@pytest.mark.parametrize("override", ["ppo.steps", "=3", "=", "", "  "])
def test_overrides_without_key_or_value(seed: Path, override: str) -> None:
    (line,) = problems(seed, override)
    assert line.endswith("is not key=value; write it like ppo.kl.coef=0.05")


def test_shipped_recipes_go_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").name == "demo"
    (tmp_path / "demo").mkdir()
    assert load_recipe("demo").name == "demo"
    (tmp_path / "demo").rmdir()
    written(tmp_path, "name: mine", "demo")
    assert load_recipe("demo").name == "mine"
    assert problems("demmo")[0].startswith("demmo: cannot be read (No such file or directory); give a recipe file or")


def test_reading_a_shipped_recipe_imports_no_stage() -> None:
    code = "import sys; from rlhf.recipe import load_recipe; load_recipe('demo'); print('stages' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_resolved_yaml_shows_every_field_and_loads_back(tmp_path: Path, seed: Path) -> None:
    overrides = ["sft.learning_rate=1e-05", "reward.learning_rate=1e20", "name=1e5", "model.path='2026-01-31'"]
    recipe = load_recipe(seed, [*overrides[:2], "name='1e5'", overrides[3], "model.revision='yes'"])
    text = resolved_yaml(recipe)
    assert load_recipe(written(tmp_path, text, "resolved.yaml")) == recipe
    assert re.search(r"^    coef: 0.05$", text, re.M)
    assert yaml.safe_load(text).keys() == Recipe.model_fields.keys()


@pytest.mark.parametrize("name", ["my run", "-x", "", "a/b"])
def test_a_name_that_is_no_directorys_is_said_in_words(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_recipe("demo", [f"name={json.dumps(name)}"])
    (line,) = raised.value.problems
    assert line.startswith(f"override: name: {name!r} is to be a directory's name: use letters, digits, dots, dashes")
