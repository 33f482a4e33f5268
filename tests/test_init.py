"""`rlhf init`: a recipe that passes every check of a run, for real files and models, sized by the memory there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from proposals import SCHEMA, half_b, made, working_folder  # noqa: F401  # the fixtures `folder` and `model`

from launch.proposal.beginning import Wishes, begin
from launch.proposal.examples import look
from launch.proposal.models import first_model, weights_of_size
from launch.proposal.writing import number, problems_of, scalar
from rlhf.config import Recipe
from rlhf.errors import ArtifactError, ConfigError, DataError, RLHFError
from rlhf.recipe import _parsed
from rlhf.schema import recipe_schema


def test_files_alone_make_a_model_from_nothing(folder: Path) -> None:
    recipe = made(demonstrations=("demonstrations.jsonl",), comparisons=("votes.jsonl",), gpus=0)
    assert recipe.name == "my" and recipe.model.path is None and recipe.model.lora is None
    longest = recipe.sft.max_length or 0
    assert longest <= recipe.model.init.context
    assert recipe.ppo.generation.max_new_tokens < recipe.model.init.context
    assert [source.format for source in recipe.data.demonstrations] == ["prompt-completion"]
    assert [source.path for source in recipe.data.prompts] == ["votes.jsonl"]  # where the reward knows its way


def test_votes_alone_give_all_three_kinds(folder: Path, model: str) -> None:
    recipe = made(comparisons=("votes.jsonl",), model=model, gpus=1, gpu_memory=80.0)
    for kind in ("demonstrations", "comparisons", "prompts"):
        assert [source.path for source in getattr(recipe.data, kind)] == ["votes.jsonl"]
    text = Path("my.yaml").read_text()
    assert "demonstrations:  # from the comparisons: prompt and preferred response" in text
    assert recipe.model.path == model and recipe.model.lora is None


def test_the_recipe_reads_well_and_fits_its_schema(folder: Path, model: str) -> None:
    files = {"comparisons": ("votes.jsonl",), "prompts": ("prompts.jsonl",)}
    made("recipes/own.yaml", **files, model=model, gpus=8, gpu_memory=80.0)
    text = Path("recipes/own.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=.rlhf/recipe.schema.json\n")
    assert max(map(len, text.splitlines())) <= 120
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "8 GPUs of 80 GiB each" in text and "\nname: own\n" in text
    assert Draft202012Validator(recipe_schema()).is_valid(_parsed(text, "own.yaml"))
    assert set(_parsed(text, "own.yaml")) == set(Recipe.model_fields) - {"labelling", "parallelism", "watchdog"}


def test_an_existing_recipe_is_kept_unless_forced(folder: Path) -> None:
    Path("my.yaml").write_text("name: mine\n")
    wishes = {"comparisons": ("votes.jsonl",), "gpus": 0}
    with pytest.raises(ConfigError, match="my.yaml: is there already; give another PATH, or --force"):
        made(**wishes)
    assert Path("my.yaml").read_text() == "name: mine\n"
    assert made(force=True, **wishes).name == "my"
    assert sorted(path.name for path in folder.iterdir() if "yaml" in path.name) == ["my.yaml"]


def test_bad_records_are_dropped_and_said(folder: Path) -> None:
    with Path("votes.jsonl").open("a") as file:
        file.write('\n{"prompt": "x", "chosen": "", "rejected": "y"}\n')
    recipe = made(comparisons=("votes.jsonl",), gpus=0)
    wanted = begin(Wishes(path=Path("my.yaml"), comparisons=("votes.jsonl",), gpus=0), SCHEMA, lambda line: None)
    assert recipe.data.comparisons[0].bad_records == "drop"
    assert "  # 256 comparisons, and 1 bad\n" in Path("my.yaml").read_text()
    assert problems_of(wanted.examples) == [
        "votes.jsonl: 1 of 257 records are bad and dropped; `rlhf data show` names them"
    ]


@pytest.mark.parametrize(
    ("wishes", "problem"),
    [
        ({}, "no comparisons; give --comparisons FILE, or a reward of your own with --reward-use"),
        ({"comparisons": ("prompts.jsonl",)}, "prompts.jsonl: format prompt holds prompts, no comparisons"),
        ({"comparisons": ("nothing.jsonl",)}, "nothing.jsonl: no such file or directory"),
        ({"comparisons": ("votes.jsonl",), "model": "nowhere"}, "nowhere: no such directory; give one made by"),
        ({"comparisons": ("votes.jsonl",), "name": "../up"}, r"--name=../up: a run's name has letters"),
        ({"comparisons": ("votes.jsonl",), "gpus": 2}, "--gpus=2: none is seen here, so their memory is unknown"),
        ({"model": "a", "sft_use": "b"}, "--model is what SFT starts from, and with --sft-use there is no SFT"),
        ({"reward_use": "no-such-thing"}, "--reward-use=no-such-thing: is none of a reward model's directory"),
        ({"reward_use": "data.toy:no_such"}, "data.toy:no_such: toy.py has no function no_such; it has: "),
        ({"reward_use": "data.toy:gold"}, "no demonstrations; give --demonstrations FILE or --comparisons FILE"),
        (
            {"comparisons": ("votes.jsonl",), "model": "org/name@" + "0" * 40},
            "not in the hub's cache and cannot be fetched .*give it with --model-size",
        ),
        (
            {"comparisons": ("votes.jsonl",), "model": "org/name", "model_size": "7B"},
            "the hub cannot be asked for its newest commit .*write org/name@COMMIT",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_and_no_file(folder: Path, wishes: dict[str, object], problem: str) -> None:
    with pytest.raises(RLHFError, match=problem) as caught:
        made(**wishes)
    assert "\n" not in str(caught.value)
    assert not Path("my.yaml").exists()


def test_what_only_a_run_would_have_found_is_found_now(folder: Path) -> None:
    """One prompt is either for training or held out."""
    Path("one.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 4)
    with pytest.raises(RLHFError, match="no example in the (test|train) part; give more prompts"):
        made(comparisons=("one.jsonl",), gpus=0)
    assert not Path("my.yaml").exists()


def test_a_hub_id_out_of_reach_is_sized_by_its_size(folder: Path) -> None:
    name = "org/name@" + "0" * 40
    proposal = begin(
        Wishes(path=Path("my.yaml"), model=name, model_size="7B", comparisons=("votes.jsonl",), gpus=8, gpu_memory=192),
        SCHEMA,
        lambda line: None,
    )
    assert (proposal.start.path, proposal.start.revision) == ("org/name", "0" * 40)
    assert proposal.task.policy.weights == 7_000_000_000


def test_a_hub_id_in_the_cache_gets_its_commit(folder: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, cache = "a" * 40, folder / "hub" / "models--org--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "snapshots" / commit / "config.json").write_text((folder / model / "config.json").read_text())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    found = first_model("org/name", None)
    assert (found.path, found.revision, found.reference) == ("org/name", commit, f"org/name@{commit}")
    assert found.shape.weights == pytest.approx(494_032_768, rel=1e-4)


@pytest.mark.parametrize(("text", "weights"), [("0.5B", 500_000_000), ("135m", 135_000_000), ("7", 7_000_000_000)])
def test_sizes_as_people_write_them(text: str, weights: int) -> None:
    assert weights_of_size(text) == weights
    with pytest.raises(ConfigError, match="--model-size=big is no number of weights"):
        weights_of_size("big")


def test_tokens_are_counted_by_the_models_own_tokenizer(tiny_run: Path) -> None:
    text = "the sky is blue . thank you for asking"
    found = first_model(str(tiny_run / "sft" / "model"), None)
    per_token, measured = found.characters_per_token([text])
    from rlhf.config import ModelConfig
    from rlhf.tokenization import load_tokenization

    tokens = load_tokenization(tiny_run / "sft" / "model", ModelConfig()).response(text, finished=False)
    assert measured and per_token == pytest.approx(len(text) / len(tokens), rel=0.1)


@pytest.mark.parametrize(("value", "text"), [(1e-5, "1e-5"), (0.05, "0.05"), (9e-6, "9e-6"), (1.5e-3, "0.0015")])
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("text", ["a.jsonl", "1e5", "yes", "a b", "a: b", "#x", "", "ü", "-", "12", "org/x@0", 'q"\\'])
def test_strings_come_back_as_they_were(text: str) -> None:
    assert _parsed(f"key: {scalar(text)}", "x") == {"key": text}


def test_ratings_need_prompts_of_their_own(folder: Path) -> None:
    Path("rated.jsonl").write_text('{"text": "good", "rating": 2.0}\n{"text": "bad", "rating": 1.0}\n')
    assert look("rated.jsonl", "comparisons").holds == "ratings"
    with pytest.raises(DataError, match="holds ratings, no demonstrations"):
        look("rated.jsonl", "demonstrations")


def test_a_damaged_model_is_found(folder: Path, model: str) -> None:
    (folder / model / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="no safetensors file, or a damaged one"):
        made(comparisons=("votes.jsonl",), model=model, gpus=1, gpu_memory=80.0)


@pytest.mark.parametrize("reward", ["http://127.0.0.1:1/score", "data.toy:gold", "own.py:short"])
def test_two_of_ones_own_need_prompts_alone(folder: Path, model: str, reward: str) -> None:
    Path("own.py").write_text("def short(prompts, responses):\n    return [-len(text) for text in responses]\n")
    recipe = made(sft_use=model, reward_use=reward, prompts=("prompts.jsonl",), gpus=1, gpu_memory=24.0)
    assert (recipe.sft.use, recipe.reward.use, recipe.model.path) == (model, reward, None)
    text = Path("my.yaml").read_text()
    assert "# No demonstrations: no stage of this recipe reads any." in text and "#   sft " not in text


def test_a_reward_model_of_ones_own_is_counted(folder: Path, model: str) -> None:
    proposal = begin(
        Wishes(
            path=Path("my.yaml"), sft_use=model, reward_use=model, prompts=("prompts.jsonl",), gpus=1, gpu_memory=80
        ),
        SCHEMA,
        lambda line: None,
    )
    assert proposal.task.scorer == proposal.task.policy
    assert list(proposal.sizes.estimates) == ["ppo"]


def test_an_adapter_is_as_large_as_its_base(folder: Path, model: str) -> None:
    adapter = Path("adapter")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": f"../{model}"}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (adapter / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    found = first_model("adapter", None)
    assert (found.path, found.shape.weights) == ("adapter", 494_032_768)
    assert made(model="adapter", comparisons=("votes.jsonl",), gpus=1, gpu_memory=80.0).model.path == "adapter"
