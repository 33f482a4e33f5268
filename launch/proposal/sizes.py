"""Sizes of a run by arithmetic: what fits into the device's memory, and what is usual for a model of that size.

Of full training, adapters, and adapters over quantised weights the first is taken under which one example at a time
fits in every stage; then each micro-batch is made as large as fits. See `rlhf.memory` for what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from launch.proposal.examples import Lengths
from launch.proposal.hardware import Hardware
from rlhf import memory
from rlhf.errors import ConfigError
from rlhf.memory import GIB, Computation, Estimate, RolloutLoad
from rlhf.shapes import Shape

Training = Literal["full", "lora", "nf4"]
RANK = 16
SMALL = 30_000_000  # weights below which a model takes, and needs, the high rates of models made from nothing
LONGEST = 2048  # tokens of an example, unless somebody wants more
LONGEST_RESPONSE = 512
LEAST_ROWS = 4  # responses decoded together


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be trained, on what."""

    policy: Shape
    scorer: Shape | None  # the reward model; None: a rule or a server
    pretrained: bool
    hardware: Hardware
    lengths: Lengths
    counts: Mapping[str, int]  # kind of examples → how many
    stages: tuple[str, ...] = ("sft", "reward", "ppo")  # those that train here
    max_length: int | None = None  # as somebody wishes


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of the stages."""

    sft: float
    reward: float
    ppo: float
    value: float


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is proposed."""

    training: Training
    sft_batch: int
    sft_micro: int
    sft_length: int
    packing: bool
    reward_batch: int
    reward_micro: int
    reward_length: int
    prompts_per_step: int
    max_new_tokens: int
    micro_batch_tokens: int
    generation_rows: int
    rates: Rates
    estimates: Mapping[str, Estimate] = field(default_factory=dict)  # stage → bytes per process


def propose(task: Task) -> Sizes:
    """Sizes for a task. Raises ConfigError, with the least memory that would do, where nothing fits."""
    choices: tuple[Training, ...] = ("full", "lora", "nf4") if task.hardware.gpus else ("full", "lora")
    if not task.pretrained:
        choices = ("full",)  # adapters on random weights learn little
    draft = _draft(task)
    for training in choices:
        sizes = _fitted(task, replace(draft, training=training, rates=rates(task, training)))
        if sizes is not None:
            return sizes
    least = smallest(replace(draft, training=choices[-1]))
    needs = estimates(task, least)
    stage = max(needs, key=lambda name: needs[name].total)
    wanted = (needs[stage].total + memory.LIBRARIES) / (1 - memory.FRAGMENTS) / GIB
    how = {"full": "", "lora": " even with adapters", "nf4": " even with adapters over 4-bit weights"}[choices[-1]]
    raise ConfigError(
        f"{stage}: a model of {task.policy.weights / 1e9:.2f} B weights needs about {wanted:.0f} GiB{how} and one "
        f"example at a time, and there is {task.hardware}; take a smaller model, a --max-length below "
        f"{max(draft.sft_length, draft.reward_length)}, or larger GPUs (--gpu-memory)"
    )


def estimates(task: Task, sizes: Sizes) -> dict[str, Estimate]:
    """The memory that each training stage needs under some sizes, per process."""
    how = computation(task, sizes.training)
    load = RolloutLoad(
        prompt=longest_prompt(task, sizes),
        response=sizes.max_new_tokens,
        generation_rows=sizes.generation_rows,
        micro_batch_tokens=sizes.micro_batch_tokens,
    )
    make: dict[str, Callable[[], Estimate]] = {
        "sft": lambda: memory.sft(task.policy, how, sizes.sft_micro, sizes.sft_length),
        "reward": lambda: memory.reward(task.policy, how, sizes.reward_micro, sizes.reward_length),
        "ppo": lambda: memory.ppo(task.policy, task.scorer, how, load),
    }
    return {stage: make[stage]() for stage in task.stages}


def computation(task: Task, training: Training) -> Computation:
    """How the models compute there: on a GPU in bfloat16 and with checkpointed activations, as `auto` decides."""
    on_gpu = task.hardware.gpus > 0
    return Computation(
        bfloat16=on_gpu,
        checkpointing=on_gpu,
        packed=task.policy.packs,
        lora_rank=None if training == "full" else RANK,
        quantization="nf4" if training == "nf4" else None,
        processes=task.hardware.processes,
    )


def longest_prompt(task: Task, sizes: Sizes) -> int:
    """Tokens of the longest prompt that PPO keeps: those that would not fit the context are left out."""
    return max(1, min(task.lengths.prompt_max, task.policy.context - sizes.max_new_tokens))


def smallest(sizes: Sizes) -> Sizes:
    """One example at a time."""
    return replace(sizes, sft_micro=1, reward_micro=1, micro_batch_tokens=1, generation_rows=LEAST_ROWS)


def _draft(task: Task) -> Sizes:
    """What does not depend on memory, and the largest of what does."""
    lengths, context = task.lengths, task.policy.context
    processes, small = task.hardware.processes, task.policy.weights < SMALL
    longest = min(context, task.max_length or LONGEST)
    sft_length = _rounded(lengths.prompt + lengths.completion, 64, longest)
    reward_length = _rounded(lengths.prompt + lengths.response, 64, longest)
    answer = max(lengths.completion, lengths.response) or LONGEST_RESPONSE
    new_tokens = _rounded(answer, 8, min(LONGEST_RESPONSE, max(1, context // 2)))
    sft_batch = batch_size(task.counts.get("demonstrations", 0), processes, 32 if small else 64)
    reward_batch = batch_size(task.counts.get("comparisons", 0), processes, 32 if small else 64)
    prompts = 4 * task.counts.get("prompts", 0)  # four steps at least make a pass
    prompts = batch_size(prompts, 2 * processes, 64 if processes < 8 else 128)
    return Sizes(
        training="full",
        sft_batch=sft_batch,
        sft_micro=sft_batch // processes,
        sft_length=sft_length,
        packing=False,
        reward_batch=reward_batch,
        reward_micro=reward_batch // processes,
        reward_length=reward_length,
        prompts_per_step=prompts,
        max_new_tokens=new_tokens,
        micro_batch_tokens=16_384,
        generation_rows=min(256, prompts // processes),
        rates=rates(task, "full"),
    )


def _fitted(task: Task, sizes: Sizes) -> Sizes | None:
    """The largest micro-batches that fit, or None where not even the smallest do."""
    room = memory.usable(task.hardware.memory)

    def first(stage: str, candidates: Iterator[Sizes]) -> Sizes | None:
        return next((one for one in candidates if estimates(task, one)[stage].total <= room), None)

    if "sft" in task.stages:
        micros = _halves(sizes.sft_batch // task.hardware.processes, 1)
        fitting = first("sft", (replace(sizes, sft_micro=micro) for micro in micros))
        if fitting is None:
            return None
        sizes = replace(fitting, packing=_packs(task, fitting))
    if "reward" in task.stages:
        micros = _halves(sizes.reward_batch // task.hardware.processes, 1)
        fitting = first("reward", (replace(sizes, reward_micro=micro) for micro in micros))
        if fitting is None:
            return None
        sizes = fitting
    row = longest_prompt(task, sizes) + sizes.max_new_tokens  # the longest stands alone, whatever the budget
    budgets = _halves(16_384, min(row, 16_384))
    fitting = first(
        "ppo",
        (
            replace(sizes, micro_batch_tokens=budget, generation_rows=rows)
            for budget in budgets
            for rows in _halves(sizes.generation_rows, min(LEAST_ROWS, sizes.generation_rows))
        ),
    )
    return replace(fitting, estimates=estimates(task, fitting)) if fitting else None


def _halves(start: int, least: int) -> Iterator[int]:
    """start and its halves as long as they are whole, divide it and are no less than the least."""
    yield start
    while start % 2 == 0 and start // 2 >= least:
        start //= 2
        yield start


def batch_size(examples: int, processes: int, most: int) -> int:
    """A multiple of the processes, a power of two times as many, so that sixteen batches at least make a pass."""
    size = processes
    while 2 * size <= most and 2 * size * 16 <= examples:
        size *= 2
    return size


def _packs(task: Task, sizes: Sizes) -> bool:
    """Whether packing pays and is sure to keep the batch: a forward must fill several rows; see stages/sft.py.

    A processor gains nothing, since the mask of a packed row is dense.
    """
    tokens = sizes.sft_micro * (task.lengths.prompt_median + task.lengths.completion_median)
    return task.hardware.gpus > 0 and task.lengths.measured and tokens >= 4 * sizes.sft_length


def rates(task: Task, training: Training) -> Rates:
    """Usual learning rates by size and training, to start from.

    Large: OpenRLHF's and TRL's examples; adapters take about ten times the rate (Schulman et al. 2025). Small: the
    shipped recipes, which were tuned.
    """
    if training != "full":
        return Rates(sft=1e-4, reward=1e-4, ppo=1e-5, value=3e-5)
    if not task.pretrained:
        return Rates(sft=5e-3 if task.policy.weights < 3e6 else 1e-3, reward=1.5e-3, ppo=5e-4, value=1e-3)
    if task.policy.weights < SMALL:
        return Rates(sft=5e-4, reward=1e-3, ppo=3e-4, value=1e-3)
    if task.policy.weights < 3e8:
        return Rates(sft=5e-5, reward=3e-5, ppo=1e-5, value=3e-5)
    return Rates(sft=1e-5, reward=9e-6, ppo=1e-6, value=9e-6)


def _rounded(tokens: int, step: int, most: int) -> int:
    return min(-(-max(1, tokens) // step) * step, most)
