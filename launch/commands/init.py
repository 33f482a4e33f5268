"""`rlhf init`: a recipe for one's own models, files and GPUs. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from launch.commands.run import DataDirectory
from launch.commands.schema import write_schema
from launch.proposal.beginning import Wishes, begin, write
from launch.proposal.questions import Questions, may_ask
from launch.proposal.writing import Proposal, problems_of, quoted, trial
from rlhf.errors import ConfigError
from rlhf.memory import GIB

SCHEMA = Path(".rlhf") / "recipe.schema.json"  # beside the recipe


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where the recipe goes.")] = Path("my.yaml"),
    model: Annotated[
        str | None, typer.Option(help="What SFT starts from: a directory or org/name@COMMIT. None: from scratch.")
    ] = None,
    model_size: Annotated[
        str | None, typer.Option(help="Weights of a hub id that is out of reach, such as 0.5B or 7B.")
    ] = None,
    demonstrations: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Demonstrations; may be repeated, as the next two.")
    ] = None,
    comparisons: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Votes.")] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Prompts for PPO. Default: those of the other files.")
    ] = None,
    sft_use: Annotated[
        str | None, typer.Option(help="A model to take in place of SFT: a directory or org/name@COMMIT.")
    ] = None,
    reward_use: Annotated[
        str | None,
        typer.Option(help="A reward in place of training one: a model, http://ADDRESS or package.module:function."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="Default: those of this machine; 0: the processor.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0, help="GiB of each. Default: as nvidia-smi says.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=16, help="Tokens of an example at most. Default: as the data need, up to 2,048.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run: runs/NAME. Default: the file's name.")] = None,
    data_directory: DataDirectory = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe that is there.")] = False,
) -> None:
    """Write a recipe for your own models, files and GPUs, with a reason beside each value.

    Asks for what is not given, on a terminal; otherwise, and with --yes, flags say everything. Files are read once:
    their format is told by their fields, their lengths and the GPU's memory decide the sizes. The recipe passes
    `rlhf run PATH --dry-run`. Beside it goes .rlhf/recipe.schema.json, by which editors complete and explain its keys.

    Examples:

        rlhf init

        rlhf init my.yaml --model ./Qwen2.5-0.5B-Instruct --comparisons votes.jsonl --yes

        rlhf init --sft-use ./Instruct --reward-use http://localhost:8000/score --prompts prompts.jsonl --yes

        rlhf init node.yaml --model ./Llama-3-8B --comparisons votes/ --gpus 8 --gpu-memory 80 --yes
    """
    if path.exists() and not force:
        raise ConfigError(f"{path}: is there already; give another PATH, or --force to write over it")
    wishes = Wishes(
        path=path,
        model=model,
        model_size=model_size,
        demonstrations=tuple(demonstrations or ()),
        comparisons=tuple(comparisons or ()),
        prompts=tuple(prompts or ()),
        sft_use=sft_use,
        reward_use=reward_use,
        gpus=gpus,
        gpu_memory=gpu_memory,
        max_length=max_length,
        name=name,
        directory=data_directory,
    )
    console = Console(highlight=False)
    asking = not yes and may_ask()
    if asking:
        wishes = Questions(console).complete(wishes)
    proposal = begin(wishes, SCHEMA, lambda line: console.print(line, markup=False, soft_wrap=True))
    show(proposal, console)
    if asking and not typer.confirm(f"Write {path}?", default=True):
        raise typer.Abort
    write(proposal, path, force)
    write_schema(path.parent / SCHEMA)
    console.print(f"\nwrote {path}; next:\n", soft_wrap=True)
    file = quoted(str(path))
    console.print(f"  rlhf run {file} --dry-run\n  {trial(proposal)}\n  rlhf run {file}", soft_wrap=True)


def show(proposal: Proposal, console: Console) -> None:
    """What was found in the files and what is proposed."""
    table = Table("stage", "memory", "of it, at its peak", box=None, padding=(0, 2, 0, 0))
    for stage, estimate in proposal.sizes.estimates.items():
        whole = {role: sum(parts.values()) for role, parts in estimate.standing.items()}
        standing = ", ".join(f"{part} {size / GIB:.1f}" for part, size in whole.items() if size)
        peak = f"{estimate.peak} {estimate.passes / GIB:.1f}"
        table.add_row(stage, f"{estimate.total / GIB:.1f} GiB", f"{standing}, {peak}")
    training = {"full": "every weight learns", "lora": "adapters learn", "nf4": "adapters over 4-bit weights learn"}
    console.print(f"\n{proposal.task.hardware}: {training[proposal.sizes.training]}; estimated memory:", soft_wrap=True)
    console.print(table)
    for line in problems_of(proposal.examples):
        console.print(f"note: {line}", markup=False, soft_wrap=True)
