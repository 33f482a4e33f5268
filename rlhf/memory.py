"""What a stage holds in a device's memory, from shapes alone: an estimate, made before anything is loaded.

Counted in bytes, per process. A weight costs 4 (float32); one that learns 4 more for its gradient and 8 for AdamW's two
moments (Loshchilov & Hutter 2019), and a bfloat16 copy of 2 while autocast computes with it. Activations are those that
Llama-like blocks save for the backward pass, scaled dot product attention without its matrix of scores among them
(Dao et al. 2022); `tests/test_memory.py` compares them with what torch really saves. Not counted: the allocator's
fragments and the libraries' own buffers, for which `usable` sets a share aside. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlhf.shapes import Shape

GIB = 2**30
FLOAT32, BFLOAT16, FLOAT64 = 4, 2, 8
LEARNING = 3 * FLOAT32  # per weight that learns: its gradient and AdamW's two moments
BITS = {"nf4": 4.5, "int8": 8.5}  # per quantised weight, the constants of its block included
LIBRARIES = int(0.75 * GIB)  # the CUDA context, workspaces of matrix products
FRAGMENTS = 0.1  # share of the memory that the allocator cannot give

# Bytes that the loss needs for each logit at its peak: the logits, their float32 copy, the log-probs, the gradients.
LOSS_PER_LOGIT = 16  # cross entropy of SFT
# PPO where all logits stand at once: an upper bound for architectures of rlhf/packing.py, whose heads answer in chunks.
POLICY_PER_LOGIT = 24  # divided by the temperature, and the entropy's own log-probs besides
SAMPLING_PER_LOGIT = 34  # with top-p, float64 probabilities, sorted, and their sums; see `rlhf.generation.choice`


@dataclass(frozen=True, kw_only=True)
class Computation:
    """How the models of a run learn and compute."""

    bfloat16: bool  # by autocast; weights that learn stay in float32
    checkpointing: bool  # activations of one block at a time, the others computed again
    lora_rank: int | None = None  # None: every weight learns
    quantization: Literal["nf4", "int8"] | None = None  # of the weights below the adapters
    processes: int = 1  # more than one: DDP's buckets may hold the gradients once more, see `learner_parts`
    weights_over: int = 1  # processes that share out the weights, block by block; frozen models' as well
    gradients_over: int = 1
    moments_over: int = 1
    master: bool = False  # the optimizer has a float32 share of its own beside the weights: DeepSpeed's ZeRO-1 and 2
    copies_stay: bool = False  # autocast keeps a copy of all weights of a forward, also of shared-out ones: ZeRO-3
    offloaded: Literal["moments", "all"] | None = None  # wait in the CPU's memory, with gradients; all: weights too

    @property
    def sharded(self) -> bool:
        """Whether weights are gathered block by block."""
        return self.weights_over > 1 or self.offloaded == "all"

    @property
    def element(self) -> int:
        """Bytes of a number that is computed with."""
        return BFLOAT16 if self.bfloat16 else FLOAT32


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for; those of `passing` are never held at the same time."""

    standing: Mapping[str, float]  # from the stage's beginning to its end
    passing: Mapping[str, float]  # phases of a step
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # of those standing that learn

    @property
    def total(self) -> float:
        """The peak, bytes."""
        return sum(self.standing.values()) + max(self.passing.values(), default=0.0)

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.passing, key=self.passing.__getitem__) if self.passing else ""


@dataclass(frozen=True, kw_only=True)
class RolloutLoad:
    """What a step of PPO works on at once, on one process."""

    prompt: int  # tokens of a long prompt
    response: int  # tokens at most
    generation_rows: int  # responses decoded together
    micro_batch_tokens: int  # per forward
    sampler: Literal["shared", "replica", "server"] = "shared"  # whose weights sample, see `rlhf.config.rollout`


def usable(memory: float) -> float:
    """What of a device's memory (bytes) tensors can fill."""
    return memory * (1 - FRAGMENTS) - LIBRARIES


def sft(shape: Shape, how: Computation, rows: int, length: int) -> Estimate:
    """Supervised fine-tuning with micro-batches of `rows` sequences of `length` tokens."""
    parts = {"policy": learner_parts(shape, how)}
    backward = activations(shape, how, rows, length) + rows * length * shape.vocabulary * LOSS_PER_LOGIT
    return Estimate(summed(parts), {"forward and backward": backward, "optimizer": optimizer(shape, how)}, parts)


def reward(shape: Shape, how: Computation, pairs: int, length: int) -> Estimate:
    """Reward training with micro-batches of so many pairs: two sequences each, one score a sequence."""
    parts = {"reward model": learner_parts(shape, how)}
    backward = activations(shape, how, 2 * pairs, length)
    return Estimate(summed(parts), {"forward and backward": backward, "optimizer": optimizer(shape, how)}, parts)


def ppo(policy: Shape, scorer: Shape | None, how: Computation, load: RolloutLoad, critic: bool = True) -> Estimate:
    """The models of PPO: policy and value model learn, reference and reward model answer.

    scorer: the reward model; None: a rule or a server. critic: whether a value model of its own takes part. It starts
    from the reward model, or from the policy where that reads other tokens: the larger of the two is counted. With
    adapters the reference is the policy without them.
    """
    values = scorer if scorer and scorer.weights > policy.weights else policy
    parts = {"policy": learner_parts(policy, how, bucketed=False)}
    if critic:
        parts["value model"] = learner_parts(values, how, bucketed=False)
    standing = {
        **summed(parts),
        "reference": answering(policy, how) if how.lora_rank is None else 0,
        "reward model": answering(scorer, how) if scorer else 0,
    }
    length = load.prompt + load.response
    rows = max(1, load.micro_batch_tokens // length)
    response = rows * load.response
    return Estimate(
        standing,
        {
            "sampling": sampling(policy, how, load),
            "log-probs": forward(policy, how, rows * length) + response * policy.vocabulary * POLICY_PER_LOGIT,
            "policy's update": activations(policy, how, rows, length) + response * policy.vocabulary * POLICY_PER_LOGIT,
            "value model's update": activations(values, how, rows, length) if critic else 0,
            "optimizer": optimizer(policy, how),
        },
        parts,
    )


def summed(parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Roles with all that each is made of."""
    return {role: sum(of_role.values()) for role, of_role in parts.items()}


def learner_parts(shape: Shape, how: Computation, bucketed: bool = True) -> dict[str, float]:
    """A model that learns: weights, gradients, moments; with adapters, those of the adapters alone.

    bucketed: DDP sends gradients from copies, as in the trainers of SFT and reward; PPO's engine from where they are.
    """
    learning = trainable(shape, how)
    shared = how.moments_over > 1 or how.offloaded  # by engines that send gradients from where they are
    below = 0.0 if how.lora_rank is None else frozen(shape, how)
    moments, own = LEARNING - FLOAT32, FLOAT32 if how.master else 0
    return {
        "weights": 0.0 if how.offloaded == "all" else (below + learning * FLOAT32) / how.weights_over,
        "gradients": 0.0 if how.offloaded else learning * FLOAT32 / how.gradients_over,
        "optimizer": 0.0 if how.offloaded else learning * (moments + own) / how.moments_over,
        "buffers": float(FLOAT32 * learning) if how.processes > 1 and bucketed and not shared else 0.0,
    }


def answering(shape: Shape, how: Computation) -> float:
    """A model that only answers, in the type that is computed in."""
    return 0.0 if how.offloaded == "all" else shape.weights * how.element / how.weights_over


def gathered(shape: Shape, how: Computation, learning: bool = False) -> float:
    """What stands whole while a shared-out model computes: all but its blocks, and two of them, one on its way.

    In float32, as it is sent, and in the type that is computed in; learning: a block's gradient too.
    """
    if not how.sharded:
        return 0.0
    block = shape.block_weights / shape.layers
    copies = how.element if how.bfloat16 else 0
    units = shape.weights - shape.block_weights + 2 * block
    return units * (FLOAT32 + copies) + (block * FLOAT32 if learning else 0)


def frozen(shape: Shape, how: Computation) -> float:
    """The weights below adapters: float32, or few bits for the blocks' linear layers."""
    if how.quantization is None:
        return shape.weights * FLOAT32
    others = shape.weights - shape.block_weights  # embeddings, head
    return shape.block_weights * BITS[how.quantization] / 8 + others * FLOAT32


def trainable(shape: Shape, how: Computation) -> int:
    """How many weights learn."""
    return shape.weights if how.lora_rank is None else shape.adapter_weights(how.lora_rank)


def optimizer(shape: Shape, how: Computation) -> float:
    """AdamW's step makes the moments' square roots of all weights at once."""
    return 0.0 if how.offloaded else trainable(shape, how) * FLOAT32 / how.moments_over


def activations(shape: Shape, how: Computation, rows: int, length: int) -> float:
    """What a forward of rows x length tokens keeps for the backward pass, the logits apart.

    Under checkpointing each block keeps its input alone (float32, which the residual stream is also under autocast),
    and one block at a time everything.
    """
    tokens = rows * length
    block = tokens * block_bytes(shape, how, length)
    copies = 0.0
    of_a_pass = how.lora_rank is None and (how.copies_stay or not how.sharded)  # kept by autocast
    if how.bfloat16 and (of_a_pass or not how.checkpointing):  # or for the backward
        copies = shape.weights * BFLOAT16
    inputs = tokens * shape.hidden * FLOAT32 * shape.layers
    kept = inputs + block if how.checkpointing else shape.layers * block
    return copies + kept + gathered(shape, how, learning=True)


def block_bytes(shape: Shape, how: Computation, length: int) -> int:
    """Bytes that one block saves for each token of a row.

    Norms and the residual stream compute in float32; linear layers and the attention in the dtype of computation, each
    saving its own copy of its input. The last term is the mask of padded rows.
    """
    if how.bfloat16:
        return 26 * shape.hidden + 8 * shape.query + 8 * shape.mlp + 2 * length
    return 24 * shape.hidden + 16 * shape.query + 16 * shape.mlp + 4 * length


def forward(shape: Shape, how: Computation, tokens: int) -> float:
    """A forward of so many tokens without gradients: the widest moment of one block."""
    kept = how.bfloat16 and how.lora_rank is None and (how.copies_stay or not how.sharded)
    copies = shape.weights * BFLOAT16 if kept else 0
    return gathered(shape, how) + copies + tokens * (3 * shape.hidden * FLOAT32 + 3 * shape.mlp * how.element)


def sampling(shape: Shape, how: Computation, load: RolloutLoad) -> float:
    """Decoding: keys and values of all tokens, counted as float32, and the probabilities of one."""
    if load.sampler == "server":
        return 0.0
    rows = load.generation_rows
    cache = rows * (load.prompt + load.response) * shape.layers * 2 * shape.key_value * FLOAT32
    choice = rows * shape.vocabulary * SAMPLING_PER_LOGIT
    replica = 0.0
    if how.sharded and load.sampler == "replica":  # gathered, and what autocast keeps of it
        replica = shape.weights * (FLOAT32 + (BFLOAT16 if how.bfloat16 else 0))
    return replica + cache + max(choice, forward(shape, how, rows * load.prompt))
