"""`rlhf plan`: what it counts, what it chooses, and that its commands are those that run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from memory_table import table
from PIL import Image
from running import ROOT, TINY, rlhf

from launch.planning.cluster import cluster, name_of
from launch.planning.needs import need, needs
from launch.planning.plan import Plan, plan
from launch.planning.work import operations
from rlhf.config import ParallelismConfig, Recipe
from rlhf.errors import ConfigError
from rlhf.memory import GIB
from rlhf.recipe import load_recipe
from rlhf.shapes import shape_of_config, shape_of_size
from stages.lineage import STAGES
from tests.qwen import QWEN_05B
from tests.test_recipes_shipped import SHAPES

LLAMA = "llama3-8b-hh-multinode"
NODES = cluster(4, 8, "80GB")


def of_llama(**options: Any) -> Plan:
    return plan(load_recipe(LLAMA), SHAPES[LLAMA], NODES, called=LLAMA, **options)


def test_the_recipe_s_own_way_and_the_one_that_sends_least() -> None:
    found = of_llama()
    assert list(found.stages) == list(STAGES) and not found.problems
    ppo = found.stages["ppo"]
    assert name_of(ppo.own.way) == "fsdp over 8" and ppo.own.fits
    fits = {name_of(each.way): each.fits for each in ppo.needs}
    assert not fits["ddp"] and not fits["zero1"] and not fits["zero2"] and fits["fsdp"] and fits["zero3"]
    assert ppo.cheapest is ppo.own
    sft = found.stages["sft"].cheapest
    assert sft and name_of(sft.way) == "zero1"
    total = {name_of(each.way): each.estimate.total for each in ppo.needs}
    assert total["ddp"] > total["zero1"] > total["zero2"] > total["fsdp over 8"] > total["zero3"] > total["fsdp"]


def test_an_odd_way_of_the_recipe_is_shown_and_never_the_cheapest_before_others() -> None:
    odd = load_recipe("demo", ["ppo.parallelism={strategy: zero1, cpu_offload: true}"])
    stage = plan(odd, shape_of_size(10**6), cluster(1, 2, "24GB"), called="demo").stages["ppo"]
    assert name_of(stage.own.way) == "zero1, offloaded" and stage.own.fits
    assert stage.cheapest and name_of(stage.cheapest.way) == "ddp"


def test_what_a_stage_refuses_is_not_recommended() -> None:
    bits = load_recipe("qwen2.5-1.5b-ultrafeedback", ["model.lora={rank: 16, alpha: 32.0, quantization: nf4}"])
    stages = plan(bits, shape_of_size(70 * 10**9), cluster(1, 8, "80GB"), called="q").stages
    for stage in (stages["sft"], stages["reward"], stages["ppo"]):
        assert stage.cheapest is None or stage.cheapest.way.strategy == "ddp"
        assert all("are not shared out" in str(each.refused) for each in stage.needs if each.way.strategy != "ddp")


def test_the_parts_of_a_model_that_learns() -> None:
    shape, recipe = SHAPES[LLAMA], load_recipe(LLAMA)
    found = need(recipe, "ppo", shape, NODES, ParallelismConfig(strategy="zero2"))
    policy = found.estimate.during("optimizer")["policy"]
    assert policy == {
        "weights": 4.0 * shape.weights,
        "gradients": 4 * shape.weights / 32,
        # DeepSpeed's own float32 share; another copy of the gradients while it steps.
        "optimizer": (8 + 4 + 4) * shape.weights / 32,
        "buffers": 0.0,
    }


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    shape = shape_of_config(QWEN_05B, "config.json")
    recipe = Recipe.model_validate({"sft": {"batch_size": 512, "micro_batch_size": 1, "max_length": 512}})
    one = cluster(1, 1, "40GB")
    for stage, field in (("ppo", "micro_batch_tokens"), ("sft", "micro_batch_size")):
        chosen = needs(recipe, stage, shape, one)[0]
        assert chosen.largest is not None
        for size, fits in ((chosen.largest, True), (2 * chosen.largest, False)):
            section = getattr(recipe, stage).model_copy(update={field: size})
            changed = recipe.model_copy(update={stage: section})
            again = need(changed, stage, shape, one, chosen.way)
            # Where it does not fit as it is, activations are computed again: that is not the micro-batch's merit.
            assert again.fits == fits or again.checkpointing != chosen.checkpointing


def test_recomputing_is_chosen_only_where_it_is_needed() -> None:
    recipe, shape = load_recipe("qwen2.5-0.5b-hh"), SHAPES["qwen2.5-0.5b-hh"]
    roomy, tight = (needs(recipe, "sft", shape, cluster(1, 1, size))[0] for size in ("80GB", "7GiB"))
    assert not roomy.checkpointing and tight.checkpointing and tight.estimate.total < roomy.estimate.total


def test_batches_add_up() -> None:
    found = of_llama(counts={"demonstrations": 1280, "comparisons": 640})
    sft, reward, ppo = (found.stages[stage].batch for stage in ("sft", "reward", "ppo"))
    assert (sft["global"], sft["per_process"], sft["micro"], sft["accumulated"], sft["steps"]) == (128, 4, 2, 2, 10)
    assert sft["tokens"] == 1280 * 1024 and reward["tokens"] == 2 * 640 * 1024
    assert (ppo["per_process"], ppo["updates"], ppo["episodes"]) == (16, 200 * 2 * 2, 200 * 512)
    assert of_llama().stages["sft"].batch["steps"] is None and of_llama().stages["sft"].operations is None


def test_time_is_operations_over_a_measured_rate() -> None:
    found = of_llama(rate={"ppo": 1e14})
    work = operations(load_recipe(LLAMA), "ppo", SHAPES[LLAMA], found.stages["ppo"].batch["tokens"])
    assert found.stages["ppo"].seconds == pytest.approx(work / (32 * 1e14))
    tokens = 200 * 512 * 2 * 192
    assert work == SHAPES[LLAMA].weights * tokens * (2 * 4 + 6 * 2 * 2)
    assert found.stages["sft"].seconds is None


def test_disk_is_what_the_recipe_says_of_it() -> None:
    said = (ROOT / "stages" / "recipes" / f"{LLAMA}.yaml").read_text()
    found = of_llama().disk
    assert f"a checkpoint of PPO is {found['a checkpoint of ppo'] / 1e9:.0f} GB" in said
    assert found["models"] == 4 * 4 * SHAPES[LLAMA].weights  # SFT, reward model, the last policy and the best
    assert found["checkpoints"] == pytest.approx((2 + 1 + 1) * (1 + 1 + 2) * 12 * SHAPES[LLAMA].weights)
    rows = (200 // 20 + 2) * 64 + 2 * 512  # held out, and evaluated
    assert found["samples"] == rows * 2 * 192 * 5
    assert found["total"] == found["checkpoints"] + found["models"] + found["samples"]
    more = plan(load_recipe(LLAMA, ["checkpoint.keep_every=25"]), SHAPES[LLAMA], NODES, called=LLAMA).disk
    assert more["checkpoints"] - found["checkpoints"] == 8 * found["a checkpoint of ppo"]


def test_what_the_stages_would_refuse_is_said() -> None:
    recipe = load_recipe(LLAMA, ["ppo.prompts_per_step=16"])
    problems = plan(recipe, SHAPES[LLAMA], cluster(2, 8, "80GB"), called=LLAMA).problems
    assert any("sft: parallelism.processes=32 where there are 16 GPUs" in each for each in problems)
    few = plan(load_recipe(LLAMA, ["ppo.prompts_per_step=16"]), SHAPES[LLAMA], NODES, called=LLAMA).problems
    assert few == [
        "ppo.prompts_per_step=16 leaves some of 32 processes without a prompt; use at least prompts_per_step=32"
    ]


def test_commands_of_one_machine_and_of_several(tmp_path: Path) -> None:
    one = plan(load_recipe(TINY), shape_of_size(10**8), cluster(1, 2, "24GB"), called=str(TINY), overrides=["seed=3"])
    (command,) = one.commands
    done = rlhf(*shlex.split(command)[1:], "--dry-run", folder=tmp_path)
    assert done.returncode == 0 and "seed: 3" in done.stdout, done.stderr
    two = plan(load_recipe(TINY), shape_of_size(10**8), cluster(2, 4, "24GB"), called=str(TINY), overrides=["seed=3"])
    (command,) = two.commands
    (tmp_path / "HOSTS").write_text("node-1 slots=4\nnode-2 slots=4\n")
    done = rlhf(*shlex.split(command)[1:], "--dry-run", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.count("--nnodes 2 --nproc-per-node 4") == 2 * len(STAGES), done.stderr
    (command,) = of_llama(overrides=['data.directory="/a b"']).commands
    assert 'data.directory="/a b"' in shlex.split(command)


@pytest.mark.parametrize(
    ("size", "gib"), [("80GB", 78.4), ("79GiB", 79.0), ("24 gb", 23.52), ("22", 22.0), ("40g", 40.0)]
)
def test_sizes_of_cards(size: str, gib: float) -> None:
    assert cluster(1, 1, size).memory == pytest.approx(gib * GIB)


@pytest.mark.parametrize("size", ["", "much", "0GB", "80TB", "-3GB"])
def test_what_is_no_size(size: str) -> None:
    with pytest.raises(ConfigError, match="is no size; use for example 80GB"):
        cluster(1, 1, size)


def test_the_command(tmp_path: Path) -> None:
    """Without weights and data: a configuration is enough."""
    folder = tmp_path / "Meta-Llama-3-8B-Instruct"
    done = rlhf("plan", LLAMA, "--nodes", "4", "--gpus", "8", folder=tmp_path)
    assert done.returncode == 2 and "give --model-size" in done.stderr and done.stderr.count("\n") == 1
    folder.mkdir()
    config = {**QWEN_05B, "model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(config))
    asked = ["plan", LLAMA, "--nodes", "4", "--gpus", "8", "--gpu-memory", "80GB"]
    done = rlhf(*asked, "--json", "--picture", "memory.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"]["weights"] == shape_of_config(config, "").weights
    assert told["cluster"]["nodes"] == 4 and not told["problems"]
    for stage in told["stages"].values():
        assert sum(each["own"] for each in stage["strategies"]) == 1 and stage["cheapest"] == "ddp"
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.size[0] > 500
    shown = rlhf(*asked, folder=tmp_path)
    assert "recipe" in shown.stdout and "--on torchrun --hosts HOSTS --nodes 4" in shown.stdout


def test_a_bench_gives_the_time(tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"ceiling_gflops": 1000.0, "mfu": 0.5, "mfu_phases": {"training": 0.6}}))
    done = rlhf("plan", "demo", "--gpus", "1", "--bench", str(bench), "--count", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert stages["ppo"]["seconds"] == pytest.approx(stages["ppo"]["operations"] / 5e11)
    assert stages["sft"]["seconds"] == pytest.approx(stages["sft"]["operations"] / 6e11)
    assert stages["sft"]["batch"]["examples"] == 12_000
    bench.write_text("{}")
    done = rlhf("plan", "demo", "--gpus", "1", "--bench", str(bench), folder=tmp_path)
    assert done.returncode == 2 and "is no result of rlhf bench ppo --json" in done.stderr


def test_the_page_has_the_table_of_sizes_and_gpus() -> None:
    assert table() in (ROOT / "docs" / "memory.md").read_text()
