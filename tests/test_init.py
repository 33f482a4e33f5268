"""`rlhf init`: a recipe that passes every check of a run, for real files and models, sized by the memory there is."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from running import ROOT, rlhf

from data import toy
from launch.proposal.beginning import Wishes, begin, write
from launch.proposal.examples import Lengths, look
from launch.proposal.hardware import Hardware, hardware
from launch.proposal.models import first_model, weights_of_size
from launch.proposal.sizes import Sizes, Task, estimates, propose
from launch.proposal.writing import number, problems_of, scalar
from rlhf import memory
from rlhf.config import Recipe
from rlhf.errors import ArtifactError, ConfigError, DataError, RLHFError
from rlhf.memory import GIB
from rlhf.recipe import _parsed, load_recipe
from rlhf.schema import recipe_schema
from rlhf.shapes import shape_of_size

SCHEMA = Path(".rlhf/recipe.schema.json")
SHARED = Path(os.environ.get("RLHF_SHARED", ROOT.parent / "shared"))
STORIES = SHARED / "data" / "model" / "stories260k"
LENGTHS = Lengths(
    prompt=300, prompt_max=800, prompt_median=100, completion=250, completion_median=120, response=250, measured=True
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with demonstrations, votes and prompts."""
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
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder: Path) -> str:
    """A directory that looks like a model of 0.5 B weights from outside; nothing here loads one."""
    return model_like(folder / "Half-B", {})


def model_like(path: Path, changes: dict[str, object]) -> str:
    config: dict[str, object] = {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    }
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config | changes))
    (path / "tokenizer_config.json").write_text("{}")
    bytes_of_weights = 2 * 494_032_768
    tensor = {"dtype": "BF16", "shape": [494_032_768], "data_offsets": [0, bytes_of_weights]}
    header = json.dumps({"w": tensor}).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + bytes_of_weights)  # sparse: takes no room
    return path.name


def made(path: str = "my.yaml", force: bool = False, **wishes: object) -> Recipe:
    """The recipe that is written, through all checks."""
    proposal = begin(Wishes(path=Path(path), **wishes), SCHEMA, lambda line: None)  # type: ignore[arg-type]
    write(proposal, Path(path), force)
    return load_recipe(path)


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
    assert set(_parsed(text, "own.yaml")) == set(Recipe.model_fields) - {"parallelism"}


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
        ({"reward_use": "data.toy:no_such"}, "data.toy:no_such: no such function"),
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


def task(size: str, machine: Hardware, **changes: object) -> Task:
    shape = shape_of_size(weights_of_size(size))
    counts = {"demonstrations": 10_000, "comparisons": 10_000, "prompts": 10_000}
    options: dict[str, object] = {"policy": shape, "scorer": shape, "pretrained": True, "lengths": LENGTHS}
    return Task(**(options | {"hardware": machine, "counts": counts} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "machine", "training"),
    [
        ("135M", Hardware(1, 8 * GIB), "full"),
        ("0.5B", Hardware(1, 24 * GIB), "full"),
        ("1B", Hardware(1, 24 * GIB), "lora"),  # gradients and moments of two models would take 32 GB
        ("3B", Hardware(1, 24 * GIB), "nf4"),
        ("1.5B", Hardware(8, 80 * GIB), "full"),
        ("8B", Hardware(8, 141 * GIB), "lora"),
        ("0.5B", Hardware(0, 64 * GIB), "full"),
        ("0.5B", Hardware(0, 16 * GIB), "lora"),
    ],
)
def test_training_that_fits(size: str, machine: Hardware, training: str) -> None:
    wanted = task(size, machine)
    sizes = propose(wanted)
    assert sizes.training == training
    for estimate in sizes.estimates.values():
        assert estimate.total <= memory.usable(machine.memory)
    for batch, micro in ((sizes.sft_batch, sizes.sft_micro), (sizes.reward_batch, sizes.reward_micro)):
        assert batch % machine.processes == 0 and (batch // machine.processes) % micro == 0
    assert sizes.prompts_per_step % (2 * machine.processes) == 0
    assert sizes.micro_batch_tokens >= LENGTHS.prompt_max + sizes.max_new_tokens


@pytest.mark.parametrize("size", ["0.5B", "1B", "3B"])
def test_micro_batches_are_as_large_as_fits(size: str) -> None:
    """Twice as much in a forward would be too much, or more than the batch."""
    wanted = task(size, Hardware(1, 24 * GIB))
    sizes = propose(wanted)
    room = memory.usable(24 * GIB)

    def needs(stage: str, **changes: int) -> float:
        from dataclasses import replace

        return estimates(wanted, replace(sizes, **changes))[stage].total

    assert sizes.sft_micro == sizes.sft_batch or needs("sft", sft_micro=2 * sizes.sft_micro) > room
    assert sizes.reward_micro == sizes.reward_batch or needs("reward", reward_micro=2 * sizes.reward_micro) > room
    assert needs("ppo", micro_batch_tokens=2 * sizes.micro_batch_tokens) > room


def test_nothing_fits_is_said_with_what_would() -> None:
    with pytest.raises(ConfigError) as caught:
        propose(task("70B", Hardware(8, 80 * GIB)))
    (line,) = caught.value.problems
    found = re.fullmatch(
        r"ppo: a model of 70.00 B weights needs about (\d+) GiB even with adapters over 4-bit weights and one example "
        r"at a time, and there is 8 GPUs of 80 GiB each; take a smaller model, a --max-length below 576, or larger "
        r"GPUs .--gpu-memory.",
        line,
    )
    assert found
    assert propose(task("70B", Hardware(8, (int(found[1]) + 1) * GIB))).training == "nf4"  # and it does


def test_a_reward_that_is_no_model_leaves_room(folder: Path) -> None:
    machine = Hardware(1, 24 * GIB)
    with_model, without = (propose(task("1B", machine, scorer=scorer)) for scorer in (shape_of_size(10**9), None))
    assert without.estimates["ppo"].standing["reward model"] == 0 < with_model.estimates["ppo"].standing["reward model"]


def test_six_gpus_share_the_batches() -> None:
    sizes: Sizes = propose(task("0.5B", Hardware(6, 80 * GIB)))
    assert sizes.sft_batch % 6 == sizes.reward_batch % 6 == sizes.prompts_per_step % 12 == 0


def test_few_examples_make_small_batches() -> None:
    counts = {"demonstrations": 100, "comparisons": 40, "prompts": 30}
    sizes = propose(task("0.5B", Hardware(1, 80 * GIB), counts=counts))
    assert (sizes.sft_batch, sizes.reward_batch, sizes.prompts_per_step) == (4, 2, 4)


def test_the_machine_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a program of nvidia-smi's name that says what the real one says."""
    assert hardware(0, None).gpus == 0 and hardware(0, None).memory > GIB
    assert hardware(4, 80.0) == Hardware(4, 80 * GIB)
    assert hardware(None, 24.0) == Hardware(1, 24 * GIB)
    program = tmp_path / "nvidia-smi"
    listed, sizes = "echo 'GPU 0: A'; echo 'GPU 1: B'", "echo 24564; echo 81559"
    program.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then {listed}; else {sizes}; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware(None, None) == Hardware(2, 24564 * 2**20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert hardware(None, None) == Hardware(1, 81559 * 2**20)


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


def test_the_command_asks_nothing_without_a_terminal(folder: Path) -> None:
    done = rlhf("init", "new.yaml", "--comparisons", "votes.jsonl", "--gpus", "0", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "votes.jsonl: format preference, 256 comparisons" in done.stdout
    assert (folder / ".rlhf" / "recipe.schema.json").is_file()
    dry = rlhf("run", "new.yaml", "--dry-run", folder=folder)
    assert dry.returncode == 0 and load_recipe("new.yaml") == load_recipe(_written(folder, dry.stdout))
    again = rlhf("init", "new.yaml", "--comparisons", "votes.jsonl", folder=folder)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "new.yaml: is there already" in again.stderr


def _written(folder: Path, text: str) -> Path:
    (folder / "resolved.yaml").write_text(text)
    return folder / "resolved.yaml"


def test_the_command_asks_at_a_terminal(folder: Path, model: str) -> None:
    answers = [
        ("Model ", model),
        ("Fine-tune it on demonstrations first", "y"),
        ("Reward ", "trained"),
        ("Comparisons", "nothing.jsonl"),
        ("nothing.jsonl: no such file.*Comparisons", "votes.jsonl"),
        ("256 comparisons.*another", ""),
        ("Demonstrations ", ""),
        ("Prompts ", "prompts.jsonl"),
        ("300 prompts.*another", ""),
        ("Write it for this machine", "n"),
        ("GPUs", "1"),
        ("GiB of each", "80"),
        ("Write own.yaml", "y"),
    ]
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update(PYTHONPATH=str(ROOT), TERM="dumb", COLUMNS="200")
        os.execv(sys.executable, [sys.executable, "-P", "-m", "launch.cli", "init", "own.yaml"])
    seen = ""
    for pattern, answer in answers:
        while not (found := re.search(pattern + r"[^\n]*: ?$", seen, re.S)):
            assert select.select([descriptor], [], [], 30)[0], (pattern, seen)
            seen += os.read(descriptor, 65536).decode()
        seen = seen[found.end() :]
        os.write(descriptor, f"{answer}\n".encode())
    try:
        while os.read(descriptor, 65536):
            continue
    except OSError:  # the other side has gone
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    recipe = load_recipe("own.yaml")
    assert recipe.model.path == model and recipe.model.lora is None
    assert [source.path for source in recipe.data.demonstrations] == ["votes.jsonl"]
    assert [source.path for source in recipe.data.prompts] == ["prompts.jsonl"]


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


@pytest.mark.services
def test_what_was_written_trains(folder: Path, tiny_run: Path) -> None:
    """From one's own model and votes alone to the first steps of PPO, by the two commands that the docs name."""
    model = str(tiny_run / "sft" / "model")
    done = rlhf("init", "--model", model, "--comparisons", "votes.jsonl", "--gpus", "0", "--yes", folder=folder)
    assert done.returncode == 0, done.stderr
    overrides = ("ppo.steps=2", "ppo.prompts_per_step=8", "evaluate.prompts=8", "tracking.wandb.mode=disabled")
    done = rlhf("run", "my.yaml", *overrides, "--run", "runs/trial", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "runs" / "trial" / "summary.json").read_text())["ppo"]["episodes"] == 16
