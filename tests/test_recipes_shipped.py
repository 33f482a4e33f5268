"""The recipes for GPUs: they resolve, read records of the hub's form, fit as their comments say, and run shrunk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from published import require_data
from running import ROOT, rlhf
from stand_ins import write_hh, write_model, write_ultrafeedback

from rlhf.config import Recipe
from rlhf.devices import Hardware, settled_recipe
from rlhf.memory import GIB, usable
from rlhf.recipe import load_recipe
from rlhf.recipe_memory import estimate
from rlhf.shapes import Shape, shape_of_config
from stages import preflight
from stages.lineage import STAGES, lineage_of

QWEN = {"model_type": "qwen2", "vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 32_768}


def qwen(hidden: int, mlp: int, layers: int, heads: int) -> Shape:
    widths = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    return shape_of_config({**QWEN, **widths, "num_attention_heads": heads, "num_key_value_heads": 2}, "config.json")


LLAMA = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SHAPES = {
    "llama3-8b-hh-multinode": shape_of_config(LLAMA, "config.json"),
    "qwen2.5-0.5b-hh": qwen(896, 4864, 24, 14),
    "qwen2.5-1.5b-ultrafeedback": qwen(1536, 8960, 28, 12),
}
A10G = Hardware(name="NVIDIA A10G", index=0, memory=22 * GIB, capability=(8, 6))
A100 = Hardware(name="NVIDIA A100-SXM4-80GB", index=0, memory=79 * GIB, capability=(8, 0))


class Shipped(NamedTuple):
    """A recipe for GPUs, and what it is for."""

    name: str
    model: str
    data: str
    write: Callable[[Path], None]
    on: Hardware
    processes: int


SHIPPED = [
    Shipped("qwen2.5-0.5b-hh", "Qwen2.5-0.5B-Instruct", "hh-rlhf", write_hh, A10G, 1),
    Shipped("qwen2.5-1.5b-ultrafeedback", "Qwen2.5-1.5B-Instruct", "ultrafeedback", write_ultrafeedback, A100, 8),
    Shipped("llama3-8b-hh-multinode", "Meta-Llama-3-8B-Instruct", "hh-rlhf", write_hh, A100, 32),
]
# What makes a recipe run on a laptop; all else stays.
SHRUNK = [
    "data.test_fraction=0.2",
    "sft.batch_size=16",
    "reward.batch_size=16",
    "ppo.steps=2",
    "ppo.prompts_per_step=8",
    "ppo.generation.max_new_tokens=8",
    "ppo.evaluate_every=2",
    "evaluate.prompts=8",
    "parallelism={processes: 1, strategy: ddp}",
    "evaluate.parallelism=null",
    "tracking.wandb.mode=disabled",
]


# Of one whose models are shared out over a node's GPUs, PPO's are still, over two processes here.
SHARED_OUT = "ppo.parallelism={processes: 2, strategy: fsdp, shard_over: 2}"


@pytest.fixture(params=SHIPPED, ids=lambda shipped: shipped.name)
def shipped(request: pytest.FixtureRequest) -> Shipped:
    found: Shipped = request.param
    return found


def stand_in(shipped: Shipped, folder: Path) -> Path:
    """A data directory as the recipe's downloads would make it."""
    if shipped.write is write_hh:
        require_data()
    write_model(folder / shipped.model)
    shipped.write(folder / shipped.data)
    return folder


def test_dry_run_by_name(shipped: Shipped, tmp_path: Path) -> None:
    """The whole recipe on stdout; what is still to be downloaded, a line each, on stderr."""
    done = rlhf("run", shipped.name, "--data-dir", "data", "--dry-run", folder=tmp_path)
    assert done.returncode == 2
    problems = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in problems)
    assert f"error: model.path={shipped.model}: no such directory" in done.stderr
    assert any(shipped.data in line and "no such file" in line for line in problems)
    resolved = Recipe.model_validate(yaml.safe_load(done.stdout))
    assert resolved == load_recipe(shipped.name, ["data.directory=data"])
    assert (resolved.name, resolved.model.path) == (shipped.name, shipped.model)
    assert not list(tmp_path.iterdir())


def test_its_records_are_read_and_its_batches_divide(shipped: Shipped, tmp_path: Path) -> None:
    folder = stand_in(shipped, tmp_path)
    recipe = load_recipe(shipped.name, [f"data.directory={json.dumps(str(folder))}", "data.test_fraction=0.2"])
    preflight.check(recipe, list(STAGES), lambda stage: shipped.processes, gpu=True)
    before = {stage: lineage_of(recipe, stage, tmp_path / "run").fingerprint for stage in STAGES}
    assert len(set(before.values())) == len(STAGES)
    (folder / shipped.model / "config.json").touch()
    assert lineage_of(recipe, "sft", tmp_path / "run").fingerprint == before["sft"]
    with next((folder / shipped.model).glob("*.safetensors")).open("ab") as file:
        file.write(b" ")
    assert lineage_of(recipe, "sft", tmp_path / "run").fingerprint != before["sft"]


def test_missing_downloads_are_named(shipped: Shipped, tmp_path: Path) -> None:
    done = rlhf("run", shipped.name, "--data-dir", str(tmp_path), *SHRUNK, folder=tmp_path)
    assert done.returncode == 2
    assert shipped.data in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    assert not list(tmp_path.iterdir())


def told(recipe: Path) -> dict[str, list[float]]:
    """The table of memory in a recipe's comments."""
    numbers = re.findall(rf"^# +({'|'.join(STAGES)}) +((?: *\d+\.\d)+)$", recipe.read_text(), re.MULTILINE)
    return {stage: [float(number) for number in row.split()] for stage, row in numbers}


def test_the_comments_say_what_the_arithmetic_gives(shipped: Shipped) -> None:
    recipe, shape = load_recipe(shipped.name), SHAPES[shipped.name]
    table = told(ROOT / "stages" / "recipes" / f"{shipped.name}.yaml")
    assert table.keys() == STAGES.keys()
    for stage, row in table.items():
        settled = settled_recipe(recipe, stage, shape, shipped.on, shipped.processes)
        assert settled.model.dtype == "bfloat16"
        needed = estimate(settled, stage, shape, shipped.processes)
        parts = (needed.stands, needed.passes, needed.total)
        assert row == [round(part / GIB, 1) for part in parts]
        assert needed.total < usable(shipped.on.memory)


@pytest.mark.services
@pytest.mark.beside
@pytest.mark.parametrize(
    "shipped",
    [pytest.param(each, marks=pytest.mark.soak if each.on is A100 else ()) for each in SHIPPED],
    ids=lambda shipped: shipped.name,
)
def test_it_runs_when_shrunk(shipped: Shipped, tmp_path: Path) -> None:
    folder = stand_in(shipped, tmp_path / "data")
    several = [SHARED_OUT] if load_recipe(shipped.name).ppo.parallelism else []
    done = rlhf("run", shipped.name, "--data-dir", str(folder), *SHRUNK, *several, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / shipped.name
    summary = json.loads((run / "summary.json").read_text())
    assert summary["ppo"]["episodes"] == 16
    assert (run / "ppo" / "adapter").is_dir() == (load_recipe(shipped.name).model.lora is not None)
