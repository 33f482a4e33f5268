"""The folder of somebody who follows the documentation: their files, their models, what the pages have them write."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import yaml
from documentation import ROOT, Block, commands, split
from safetensors.numpy import save_file

from data import toy
from launch.clusters.site import Site

PROMPTS = toy.prompts()[:200]
# What makes a documented recipe small enough to run here; everything else stays as the page has it.
SMALLER: dict[str, Any] = {
    "data": {"test_fraction": 0.2},
    "sft": {"epochs": 1, "batch_size": 16, "max_length": 112},
    "reward": {"epochs": 1, "batch_size": 16, "max_length": 112},
    "ppo": {"steps": 2, "prompts_per_step": 8, "generation": {"max_new_tokens": 8}, "held_out": {"prompts": 8}},
    "evaluate": {"prompts": 8},
}


def demonstrations() -> list[dict[str, str]]:
    return [{"prompt": d.prompt.text, "completion": d.completion} for d in toy.demonstrations(128, 0, PROMPTS)]


def preferences(seed: int) -> list[dict[str, Any]]:
    return [
        {"prompt": c.prompt.text, "chosen": c.chosen, "rejected": c.rejected, "tie": c.tie, "annotator": c.annotator}
        for c in toy.comparisons(128, seed, PROMPTS).records
    ]


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


def write_votes(path: Path) -> None:
    path.mkdir()
    for number, name in enumerate(("monday", "tuesday")):
        write_lines(path / f"{name}.jsonl", preferences(number))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(demonstrations())


def write_prompts(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [prompt.text for prompt in PROMPTS]}), path)


# The names that the pages use for a reader's own files.
FILES: dict[str, Callable[[Path], object]] = {
    "demonstrations.jsonl": lambda path: write_lines(path, demonstrations()),
    "own.jsonl": lambda path: write_lines(path, demonstrations()),
    "own.csv": write_csv,
    "preferences.jsonl": lambda path: write_lines(path, preferences(0)),
    "prompts.jsonl": lambda path: write_lines(path, ({"prompt": prompt.text} for prompt in PROMPTS)),
    "prompts.parquet": write_prompts,
    "votes": write_votes,
    "hosts": lambda path: path.write_text("node-1 slots=8\nme@node-2:2222 slots=8 address=10.0.0.2\n"),
    "votes.jsonl": lambda path: write_lines(path, preferences(0)),
    "words.txt": lambda path: path.write_text("# of this team\nshut up\n"),
}
# And for their models: what of the tiny run stands in for each.
MODELS = {"Qwen2.5-0.5B-Instruct": "sft", "Instruct": "sft", "Llama-3-8B": "sft", "my-reward-model": "reward"}


def write_hollow_model(folder: Path, head: str) -> None:
    """A model's directory as a launcher sees it, with a single weight."""
    folder.mkdir(parents=True)
    config = {"architectures": [f"Qwen2For{head}"], "num_labels": 1, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text("{}")
    save_file({"weight": numpy.zeros(1, numpy.float32)}, folder / "model.safetensors")


def furnish(folder: Path, page: Path, tiny_run: Path | None = None) -> None:
    """Put there what a reader of a page has, and what the page has them write.

    A recipe of the page is there under another name as it stands, and under its own as a smaller one built on it; a
    page that writes no my.yaml has that of the first ten minutes. Without a tiny run there are no runs, and of models
    what a launcher looks at: files of the right form that no library could compute with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in FILES.items():
        write(folder / name)
    if tiny_run:
        for name, stage in MODELS.items():
            shutil.copytree(tiny_run / stage / "model", folder / name)
        shutil.copytree(tiny_run, folder / "runs" / "demo")
    for name, stage in MODELS.items() if not tiny_run else ():
        write_hollow_model(folder / name, "SequenceClassification" if stage == "reward" else "CausalLM")
    blocks = {block.file: block for block in split(page)[0] if block.file}
    if not (tiny_run and any(command.text.startswith("rlhf init my.yaml") for command in commands(page))):
        first = split(ROOT / "docs" / "index.md")[0]
        blocks.setdefault("my.yaml", next(block for block in first if block.file == "my.yaml"))
    for name, block in blocks.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        if is_recipe(block):
            path.rename(path.with_stem(f"{path.stem}-as-documented"))
            path.write_text(yaml.safe_dump({"base": f"{path.stem}-as-documented.yaml", **SMALLER}))


def is_recipe(block: Block) -> bool:
    """Whether a block is a recipe or a part of one: all yaml is, but for tasks, manifests, sites and mere comments."""
    values = yaml.safe_load(block.text) if block.language == "yaml" else None
    return isinstance(values, dict) and not {"task", "apiVersion"} & values.keys() and not is_site(values)


def is_site(values: dict[str, object]) -> bool:
    """Whether a block of yaml is about a cluster."""
    return values.keys() <= Site.model_fields.keys()


@dataclass(frozen=True)
class Typed:
    """How a command went."""

    code: int | None  # None: it was ended
    seconds: float  # of a processor, so that a busy machine does not count
    printed: str


def type_in(command: str, folder: Path, patience: float = 400) -> Typed:
    """Run a command in a shell as a reader would, for at most `patience` seconds."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "REPOSITORY": str(ROOT),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    environment.pop("WANDB_API_KEY", None)
    before = processor_seconds()
    with (folder / ".printed").open("w+b") as printed:
        shell = ["bash", "-euo", "pipefail", "-c", command]
        process = subprocess.Popen(
            shell,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(patience)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind, such as a server
            process.wait()
        printed.seek(0)
        return Typed(code, processor_seconds() - before, printed.read().decode(errors="replace"))


def processor_seconds() -> float:
    """What the processes that we waited for, and those that they waited for, have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
