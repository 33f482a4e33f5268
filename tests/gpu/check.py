"""The whole road on one GPU: random models of Qwen2.5's shape, float32 and bfloat16, all weights, adapters, FSDP2.

    python tests/gpu/check.py --table gpu.md                       # learns the embedded task, minutes
    python tests/gpu/check.py --size half-billion --table gpu.md   # Qwen2.5-0.5B's own shape: memory and speed alone
    python tests/gpu/check.py --device cpu --size tiny             # that this script is not rotten

It needs torch, transformers, accelerate, peft, pydantic, PyYAML, rich, psutil and pyarrow. Without TRL the two
supervised stages are trained by tests/gpu/without_trl.py, and the table says so. The exit code is 1 if something that
must be learned was not. The table is Markdown: hardware, versions, and what was measured.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VARIANTS = ("float32-full", "float32-lora", "bfloat16-full", "bfloat16-lora", "bfloat16-fsdp")
NEEDED_BY_TRAINERS = ("trl", "datasets")
PACKAGES = ("torch", "transformers", "peft", "trl")
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """A model's shape, and how long it trains."""

    shape: dict[str, int]
    vocabulary: int  # of the tokenizer; the embedding may have more rows
    examples: int  # demonstrations and comparisons each
    batch: int
    rates: tuple[float, float, float, float]  # learning rates of SFT, reward, policy, value
    ppo_steps: int
    prompts: int  # each step of PPO
    new_tokens: int
    learns: bool  # whether a run must show that it learned


def shape(hidden: int, mlp: int, layers: int, heads: int, keys: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip(names, (hidden, mlp, layers, heads, keys), strict=True))


SIZES = {
    "tiny": Size(shape(64, 176, 2, 2, 1), 400, 96, 16, (5e-3, 2e-3, 1e-3, 1e-3), 2, 8, 12, learns=False),
    # Width, depth, rates and counts of the recipe `demo`, which is known to learn.
    "small": Size(shape(128, 344, 3, 4, 2), 640, 12_000, 32, (5e-3, 1.5e-3, 5e-4, 1e-3), 50, 96, 36, learns=True),
    "half-billion": Size(
        shape(896, 4864, 24, 14, 2) | {"vocab_size": 151_936}, 640, 512, 16, (1e-4,) * 4, 5, 64, 128, learns=False
    ),
}


@dataclass(frozen=True)
class Row:
    """One stage of one variant."""

    variant: str
    stage: str
    seconds: float
    memory: float | None  # GiB at the peak; None on a CPU
    computed: float  # GiB at most, by rlhf.memory
    tokens_per_second: float | None  # sampled and trained, PPO
    figures: str


def main() -> int:
    """Run what was asked for; 0 if all that must be learned was."""
    options = arguments()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
    import torch

    if options.device == "auto" and not torch.cuda.is_available():
        print("no GPU is visible; --device cpu runs on this machine's CPU", file=sys.stderr)
        return 2
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory(prefix="rlhf-gpu-") as temporary:
        folder = Path(options.output or temporary)
        write_start(folder / "start", size)
        rows: list[Row] = []
        failures: list[str] = []
        for variant in options.variants:
            part, problems = run_variant(variant, size, folder)
            rows += part
            failures += problems
    table = markdown(options, rows, failures)
    print(table)
    if options.table:
        options.table.write_text(table, encoding="utf-8")
    return 1 if failures else 0


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="default: all")
    parser.add_argument("--output", type=Path, help="where the runs stay (default: nowhere)")
    parser.add_argument("--table", type=Path, help="the Markdown file to write")
    return parser.parse_args()


def write_start(directory: Path, size: Size) -> None:
    """A randomly initialised Qwen2.5 with a small tokenizer of the embedded task, as a model's directory."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from data import toy
    from rlhf.tokenization import train_tokenization

    texts = (f"{d.prompt.text}\n{d.completion}" for d in toy.demonstrations(4000, 0, toy.prompts()))
    tokenization = train_tokenization(texts, size.vocabulary, 512)
    torch.manual_seed(0)
    given = {"vocab_size": len(tokenization.tokenizer), **size.shape}
    config = Qwen2Config(max_position_embeddings=512, tie_word_embeddings=True, **given)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenization.save(directory)


def recipe_of(variant: str, size: Size, folder: Path) -> Any:
    """The recipe of a variant; adapters start from what training of all weights has made, if that was run."""
    import torch

    from rlhf.recipe import load_recipe

    dtype, kind = variant.split("-")
    trained = folder / f"{dtype}-full" / "sft" / "model"
    start = trained if kind == "lora" and trained.is_dir() else folder / "start"
    sft, reward, policy, value = size.rates
    shared = {"strategy": "fsdp"} if kind == "fsdp" else None
    by_trl = shared if has_trainers() and torch.cuda.is_available() else None  # accelerate shares out on GPUs alone
    source = [{"path": "toy", "count": size.examples, "held_out": max(64, size.examples // 16)}]
    stage = {"epochs": 1, "batch_size": size.batch, "parallelism": by_trl}
    values = {
        "name": variant,
        "model": {"path": str(start), "dtype": dtype, "lora": {"rank": 16, "alpha": 32.0} if kind == "lora" else None},
        "data": {"demonstrations": source, "comparisons": source, "prompts": [{"path": "toy"}]},
        # The same steps whether TRL is there or not.
        "sft": {**stage, "learning_rate": sft, "packing": False},
        "reward": {**stage, "learning_rate": reward, "center": 0.001},
        "ppo": {
            "steps": size.ppo_steps,
            "prompts_per_step": size.prompts,
            "generation": {"max_new_tokens": size.new_tokens},
            "kl": {"coef": 0.1},
            "learning_rate": policy,
            "value_learning_rate": value,
            "evaluate_every": 0,
            "parallelism": shared,
        },
        "evaluate": {"prompts": 256 if size.learns else 16, "gold": "data.toy:gold"},
        "checkpoint": {"every_steps": None, "every_minutes": None},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    path = folder / f"{variant}.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return load_recipe(path)


def run_variant(variant: str, size: Size, folder: Path) -> tuple[list[Row], list[str]]:
    """All stages of a variant, one after another in this process, and what was not learned."""
    rows, failures, recipe = [], [], recipe_of(variant, size, folder)
    if variant.endswith("fsdp") and has_trainers():  # accelerate keeps to what the first trainer of a process was told
        importlib.import_module("accelerate.state").AcceleratorState._reset_state(reset_partial_state=True)
    for stage in ("sft", "reward", "ppo", "evaluate"):
        row, results = run_stage(stage, recipe, folder / variant)
        rows.append(row)
        made = json.loads((folder / variant / stage / "manifest.json").read_text())
        if recipe.parallelism_of(stage).strategy == "fsdp" and '"FSDP' not in json.dumps(made["engine"]):
            failures.append(f"{variant}, {stage}: {made['engine']} ran")
        if size.learns and (problem := not_learned(stage, results)):
            failures.append(f"{variant}, {stage}: {problem}")
    return rows, failures


def run_stage(stage: str, recipe: Any, run: Path) -> tuple[Row, dict[str, Any]]:
    """One stage, timed, with the most memory that it had allocated."""
    import torch

    from rlhf.devices import settled_recipe
    from rlhf.randomness import seed_everything
    from rlhf.recipe_memory import estimate, read_shape
    from stages.command import quiet_libraries
    from stages.context import StageContext, StageOptions

    quiet_libraries()
    seed_everything(recipe.seed)
    if on_gpu := torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    main_of(stage)(StageContext(recipe, stage, StageOptions(run, run / stage)))
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    memory = torch.cuda.max_memory_allocated() / GIB if on_gpu else None
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    known = read_shape(recipe.model.path)
    assert known
    computed = estimate(settled_recipe(recipe, stage, known), stage, known).total / GIB
    results = json.loads((run / stage / "manifest.json").read_text())["results"]
    speed = speed_of(run / stage) if stage == "ppo" else None
    return Row(run.name, stage, seconds, memory, computed, speed, told(stage, results)), results


def main_of(stage: str) -> Any:
    """What runs a stage: its own main, or without TRL our plain loops for the two supervised ones."""
    if stage in ("sft", "reward") and not has_trainers():
        import without_trl

        return {"sft": without_trl.supervised, "reward": without_trl.reward}[stage]
    return importlib.import_module(f"stages.{stage}").main


def has_trainers() -> bool:
    """Whether TRL and what it needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDED_BY_TRAINERS)


def speed_of(directory: Path) -> float:
    """Response tokens a second, sampling and training together, without the first step, which warms up."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["perf/tokens_per_second"] for line in lines if "perf/tokens_per_second" in line][1:]
    return sum(speeds) / len(speeds)


def told(stage: str, results: dict[str, Any]) -> str:
    """A stage's own figures."""
    if stage == "sft":
        return f"held-out loss {results['eval_loss']:.3f}"
    if stage == "reward":
        return f"held-out accuracy {results['accuracy']:.3f} of {results['bayes_accuracy']:.3f}"
    if stage == "ppo":
        return f"KL {results['kl']:.2f} nats"
    return f"gold {results['gold_before']:.3f} to {results['gold_after']:.3f}, win rate {results['win_rate']:.3f}"


def not_learned(stage: str, results: dict[str, Any]) -> str | None:
    """What should have been learned and was not."""
    if stage == "sft" and results["eval_loss"] > 1.5:  # nats per token; a uniform guess costs more than 6
        return f"held-out loss {results['eval_loss']:.3f} is above 1.5"
    if stage == "reward" and results["accuracy_ci"][0] < 0.6:
        return f"held-out accuracy {results['accuracy']:.3f} is not surely above 0.6"
    if stage == "evaluate" and results["gold_gain_ci"][0] <= 0:
        return f"gold did not surely rise: {results['gold_before']:.3f} to {results['gold_after']:.3f}"
    return None


def markdown(options: argparse.Namespace, rows: Sequence[Row], failures: Sequence[str]) -> str:
    """Hardware, versions, what was skipped, and the figures."""
    from rlhf.devices import hardware
    from rlhf.store.artifact import environment

    versions = {name: metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name) is not None}
    commit = (environment()["commit"] or "unknown")[:12]
    lines = [
        f"### {hardware()}, size {options.size}",
        "",
        f"`python tests/gpu/check.py --size {options.size}`, commit {commit}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]
    if not has_trainers():
        lines.append("No TRL here: SFT and reward model were trained by tests/gpu/without_trl.py, not by their stages.")
    lines += [
        "",
        "| variant | stage | seconds | memory, GiB | computed at most, GiB | tokens/s | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = asdict(row) | {
            "seconds": f"{row.seconds:.1f}",
            "memory": "-" if row.memory is None else f"{row.memory:.2f}",
            "computed": f"{row.computed:.2f}",
            "tokens_per_second": "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        }
        lines.append("| " + " | ".join(str(cell) for cell in cells.values()) + " |")
    lines += ["", *(f"- failed: {failure}" for failure in failures)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
