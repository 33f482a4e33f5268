"""`rlhf bench`: how fast, and how near to what the machine can do. Loads no torch: children are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from launch.bench import Bench, Contestant
from launch.commands.benched import RecipeOption, known, measured, of_recipe
from launch.commands.generation import Python, find_python
from launch.commands.run import Overrides
from launch.trl_wheel import trl_with_ppo
from rlhf.errors import ConfigError
from stages.bench.sizes import CONTEXT, SIZES

app = typer.Typer(
    name="bench", help="Measure speed, and how near it is to what the machine can do.", no_args_is_help=True
)
Size = Annotated[str, typer.Option("--size", help=f"Of random models: {', '.join(SIZES)}.")]
Micro = Annotated[int, typer.Option("--micro", min=1, help="Rows of the longest kind in a micro-batch.")]
ResponseLength = Annotated[int, typer.Option("--response-length", min=1, help="Tokens at most.")]
EosBias = Annotated[
    float, typer.Option("--eos-bias", min=0, max=0.99, help="Chance that a response ends behind a token; 0: never.")
]
PpoEpochs = Annotated[int, typer.Option("--ppo-epochs", min=1, help="Passes over an update's responses.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Of the CPU.")]
Seed = Annotated[int, typer.Option("--seed", help="Of weights, tokens and lengths.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 or bfloat16, of computation.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Updates = Annotated[int, typer.Option("--updates", min=1, help="That count, behind one that warms up.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.callback()
def bench() -> None:
    """Measure speed, and how near it is to what the machine can do."""


@app.command()
def ppo(
    context: typer.Context,
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    size: Size = "15M",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Responses an update.")] = 16,
    micro: Micro = 8,
    response_length: ResponseLength = 32,
    eos_bias: EosBias = 0.0,
    ppo_epochs: PpoEpochs = 2,
    threads: Threads = 2,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    updates: Updates = 5,
    against: Annotated[
        str | None,
        typer.Option("--against", help="trl: its last PPOTrainer (1.12.0, float32), turn by turn with ours."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time updates of PPO by phase: sampling, scoring by reference, value and reward model, training.

    MFU is the share of the measured rate of matrix products that went into useful tokens: 2 operations a weight and
    token read, 6 trained; padding counts nothing. With --against both sides have the same weights, prompts, lengths and
    epochs, and take turns; the ratio is their median seconds over ours. Its wheel is downloaded once, into a cache.

    With --recipe the model's shape, dtype, attention, adapters, strategy, batch, micro-batches, epochs and the length
    of responses are the recipe's, as one process has them; weights and prompts are random, the reward is a model as
    large.

    Examples:

        rlhf bench ppo

        rlhf bench ppo --recipe demo ppo.micro_batch_tokens=8192

        rlhf bench ppo --batch 64 --response-length 128 --eos-bias 0.04 --against trl

        rlhf bench ppo --size qwen2.5-0.5b --batch 64 --device cuda --dtype bfloat16 --json
    """
    known(size, dtype, device, against, "trl")
    of, dtype = of_recipe(context, recipe, overrides, dtype, device)
    if against and of:
        raise ConfigError(f"--against={against} with --recipe={recipe}: the baseline knows sizes alone; leave one out")
    if against and device != "cpu":
        raise ConfigError(f"--against={against} with --device={device}: the baseline runs on the CPU; use --device cpu")
    if against and batch % micro:
        raise ConfigError(f"--batch={batch} with --micro={micro}: TRL wants whole micro-batches; use a divisor")
    own = {"size": size, "batch": batch, "micro": micro, "response_length": response_length, "ppo_epochs": ppo_epochs}
    load = {**(of or own), "eos_bias": eos_bias, "threads": threads, "seed": seed}
    sides = [Contestant("rlhf", "stages.bench.ours")]
    if against:
        sides.append(Contestant("trl", "stages.bench.trl_ppo", path=trl_with_ppo()))
    measured(Bench(load, dtype, device, updates, sides), as_json)


@app.command()
def generate(
    context: typer.Context,
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    size: Size = "15M",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Responses.")] = 64,
    responses_per_prompt: Annotated[int, typer.Option("--responses-per-prompt", min=1, help="That answer one.")] = 1,
    response_length: ResponseLength = 128,
    eos_bias: EosBias = 0.04,
    threads: Threads = 2,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    updates: Updates = 5,
    against: Annotated[
        str | None, typer.Option("--against", help="transformers: its `generate`; vllm; turn by turn with ours.")
    ] = None,
    python: Python = None,
    as_json: Json = False,
) -> None:
    """Time the sampling of responses, of one length or of lengths that chance ends.

    vLLM runs in the environment of the interpreter that --python or RLHF_VLLM_PYTHON names.

    Examples:

        rlhf bench generate --against transformers

        rlhf bench generate --batch 64 --responses-per-prompt 8

        rlhf bench generate --recipe demo

        rlhf bench generate --size qwen2.5-0.5b --batch 256 --device cuda --dtype bfloat16
    """
    known(size, dtype, device, against, "transformers", "vllm")
    of, dtype = of_recipe(context, recipe, overrides, dtype, device)
    if batch % responses_per_prompt:
        field = f"--batch={batch} with --responses-per-prompt={responses_per_prompt}"
        raise ConfigError(f"{field}: each prompt has as many; use a divisor")
    own = {"size": size, "batch": batch, "response_length": response_length}
    load = {**(of or own | {"responses_per_prompt": responses_per_prompt}), "eos_bias": eos_bias}
    sides = [Contestant("rlhf", "stages.bench.generating", ("rlhf",))]
    if against == "vllm":
        sides.append(Contestant("vllm", "stages.bench.vllm", python=find_python(python)))
    elif against:
        sides.append(Contestant(against, "stages.bench.generating", (against,)))
    measured(Bench({**load, "threads": threads, "seed": seed}, dtype, device, updates, sides), as_json)


Batch = Annotated[int, typer.Option("--batch", min=1, help="Demonstrations, or pairs, an optimizer step.")]
MicroBatch = Annotated[int, typer.Option("--micro", min=1, help="Of them in a forward.")]
Shortest = Annotated[int, typer.Option("--shortest", min=2, help="Tokens of a sequence; each number is as likely.")]
Longest = Annotated[int, typer.Option("--longest", min=2, help="Tokens of a sequence at most.")]
LONGEST = 256
AgainstTrl = Annotated[str | None, typer.Option("--against", help="trl: its own trainer, turn by turn with ours.")]


TRAINERS = {
    "sft": "supervised fine-tuning; the second half of each sequence is learned",
    "reward": "a reward model on pairs; each sequence has a length of its own",
}


def add(stage: str, about: str) -> None:
    """The command of one of the two supervised trainers."""
    text = f"""Time optimizer steps of {about}.

    TRL's trainer has its defaults, without activation checkpointing, as ours; both losses are in the result. With
    --recipe both have its model's shape, dtype, attention, activation checkpointing, adapters, batch and micro-batches;
    weights are random.

    Examples:

        rlhf bench {stage} --against trl

        rlhf bench {stage} --recipe demo {stage}.batch_size=64

        rlhf bench {stage} --size qwen2.5-0.5b --longest 1024 --device cuda --dtype bfloat16
    """

    @app.command(stage, help=text)
    def command(
        context: typer.Context,
        overrides: Overrides = None,
        recipe: RecipeOption = None,
        size: Size = "15M",
        batch: Batch = 32,
        micro: MicroBatch = 8,
        shortest: Shortest = 8,
        longest: Longest = LONGEST,
        threads: Threads = 2,
        seed: Seed = 0,
        dtype: Dtype = "float32",
        device: Device = "cpu",
        updates: Updates = 5,
        against: AgainstTrl = None,
        as_json: Json = False,
    ) -> None:
        known(size, dtype, device, against, "trl")
        of, dtype = of_recipe(context, recipe, overrides, dtype, device)
        room = of["longest"] if of else CONTEXT
        lengths = {"shortest": shortest, "longest": min(LONGEST, room) if longest == LONGEST else longest}
        load = {**(of or {"size": size, "batch": batch, "micro": micro}), **lengths}
        sides = of_trainer(stage, load, against, room)
        measured(Bench({**load, "threads": threads, "seed": seed}, dtype, device, updates, sides), as_json)


for each in TRAINERS.items():
    add(*each)


def of_trainer(stage: str, load: Mapping[str, Any], against: str | None, room: int) -> list[Contestant]:
    """Who is measured with one of the two supervised trainers. Raises ConfigError."""
    batch, micro, shortest, longest = (load[name] for name in ("batch", "micro", "shortest", "longest"))
    if batch % micro:
        raise ConfigError(f"--batch={batch} with --micro={micro}: a step is of whole micro-batches; use a divisor")
    if not shortest <= longest <= room:
        raise ConfigError(
            f"--shortest={shortest} --longest={longest}: no lengths lie between them that fit {room} tokens; "
            f"use {min(8, room)} and {min(LONGEST, room)}"
        )
    return [Contestant(name, "stages.bench.trainers", (stage, name)) for name in ("rlhf", against) if name]
