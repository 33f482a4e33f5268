"""What a model needs while it computes: activations, logits, keys and values, and weights that are gathered for it.

Activations are those that Llama-like blocks save for the backward pass, scaled dot product attention without its matrix
of scores among them (Dao et al. 2022), which on CPUs short sequences have (docs/memory.md); tests compare them with
what torch really saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf.memory.computation import BFLOAT16, FLOAT32, Computation
from rlhf.memory.models import LIVE
from rlhf.memory.parts import Parts
from rlhf.shapes import AT_ONCE, PROMPT_TOKENS, Shape

# Bytes that the loss needs for each logit at its peak. Packed, of a chunk: the logits and their probabilities; in the
# backward their gradient, in the logits' place, and a factor of it where the entropy is learned, too.
CHUNK_PER_LOGIT = 2 * FLOAT32
# Padded, of all at once: the logits, their float32 copy, the log-probs, the gradients.
LOSS_PER_LOGIT = 16  # cross entropy of SFT
POLICY_PER_LOGIT = 24  # PPO: divided by the temperature, and the entropy's own log-probs besides
CHOICE_PER_LOGIT = 3 * FLOAT32  # of sampling: as they come, in the order of those who decode, and their exponentials
NUCLEUS_PER_LOGIT = 34  # with top-p, float64 probabilities, sorted, and their sums; see `rlhf.generation.choice`


@dataclass(frozen=True, kw_only=True)
class RolloutLoad:
    """What a step of PPO works on at once, on one process."""

    prompt: int  # tokens of a long prompt
    response: int  # tokens at most
    generation_rows: int  # responses decoded together
    micro_batch_tokens: int  # per forward
    # Whose weights sample, see `rlhf.config.rollout`; beside: those of vLLM in the same process, which stay.
    sampler: Literal["shared", "replica", "server", "beside"] = "shared"
    nucleus: bool = False  # top-p below 1

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.response

    @property
    def rows(self) -> int:
        """Rows of a forward."""
        return max(1, self.micro_batch_tokens // self.length)


def activations(shape: Shape, how: Computation, rows: int, length: int) -> float:
    """What a forward of rows x length tokens keeps for the backward pass, logits and copies of weights apart.

    Under checkpointing each block keeps its input alone (float32, which the residual stream is also under autocast),
    and one block at a time everything.
    """
    tokens = rows * length
    block = tokens * block_bytes(shape, how, length)
    inputs = tokens * shape.hidden * FLOAT32 * shape.layers
    return float(inputs + block if how.checkpointing else shape.layers * block)


def block_bytes(shape: Shape, how: Computation, length: int) -> int:
    """Bytes that one block saves for each token of a row.

    Norms and the residual stream compute in float32; linear layers and the attention in the dtype of computation, each
    saving its own copy of its input where that is no norm of ours. Padded, keys and values are repeated for each head,
    and there is a mask of rows; packed, they are where no kernel for variable lengths runs, which is one for bfloat16.
    """
    heads = 4 * shape.query  # queries, keys, values, and what attention gives
    if how.packed and how.bfloat16:
        heads = 2 * shape.query + 2 * shape.key_value
    mask = 0 if how.packed else length
    adapters = 0 if how.lora_rank is None else 7 * how.lora_rank  # each of seven linear layers a vector of the rank
    inner = 4  # of a gated MLP: what its two products gave, silu's result, and what the third multiplies
    if shape.lean:
        inner = 2 if how.lora_rank is None else 3  # what the third multiplies its adapter keeps
    return norm_bytes(shape, how) * shape.hidden + how.element * (heads + inner * shape.mlp + mask + adapters)


def norm_bytes(shape: Shape, how: Computation) -> int:
    """Of each hidden state, what a block's two norms and the linear layers behind them save."""
    given, normed = 2 * FLOAT32, 2 * FLOAT32
    if how.lora_rank is not None or shape.lean:
        normed = 0  # kept for the norms' own weights alone, and by ours not even for these
    read = 2 * FLOAT32  # what norms give
    if how.bfloat16:  # which each of five linear layers has rounded for itself
        read = (2 if shape.lean and how.lora_rank is None else 5) * BFLOAT16
    return given + normed + read


def backward(
    shape: Shape, how: Computation, rows: int, length: int, asked: int = 0, padded: int = LOSS_PER_LOGIT
) -> Parts:
    """A forward whose gradient is to come, at its widest; asked: tokens whose logits the loss needs, see `logits`.

    That is the backward's beginning, with the logits, or what comes behind, the last block's MLP beside the head's
    gradient, which waits. Of ZeRO-3 also the forward's end, with all that it has gathered; less is gathered again.
    A bound: where all logits are one chunk, their gradient has gone before the head's is there.
    """
    kept, answers = activations(shape, how, rows, length), logits(shape, how, asked, padded, learning=True)
    waiting = head_gradient(shape, how) if asked and how.packed else 0.0
    turned = turning(shape, how, rows * length)
    whole = gathered(shape, how)
    if how.strategy == "zero3":
        at_the_end = logits(shape, how, asked, padded) + (rounded_head(shape, how) if asked else 0.0)
        whole = max(units(shape) * FLOAT32, whole + at_the_end - answers)
    return {
        "activations": kept + max(0.0, turned - (answers - waiting)),
        "logits": answers,
        "buffers": copies(shape, how, learning=True) + whole + sending(shape, how, not asked),
    }


def turning(shape: Shape, how: Computation, tokens: int) -> float:
    """What a block's backward makes at its widest, in its MLP: two tensors of its width, and a gradient of a weight.

    In bfloat16 that gradient as the product gives it, too, or behind it the weight, rounded.
    """
    of_each = FLOAT32 + (BFLOAT16 if how.bfloat16 else 0)
    of_weight = of_each * shape.mlp * shape.hidden if how.lora_rank is None else 0
    return float(2 * tokens * shape.mlp * how.element + of_weight)


def forward(shape: Shape, how: Computation, tokens: int, learner: bool = True) -> Parts:
    """A forward of so many tokens without gradients: the widest moment of one block. learner: one that learns else."""
    wide = 3 * shape.hidden * FLOAT32 + 3 * shape.mlp * how.element
    held = copies(shape, how, learning=False) if learner else 0.0
    return {"activations": float(tokens * wide), "buffers": held + gathered(shape, how, learner)}


def logits(shape: Shape, how: Computation, asked: int, padded: int, learning: bool = False) -> float:
    """Of so many tokens. padded: bytes for each where all stand at once.

    Learning in bfloat16, with a rounded copy of the head. Packed, with a gradient of the head's own, which waits for
    the embeddings' where these are the same weights, and in bfloat16 what a chunk adds to it.
    """
    if not asked:
        return 0.0
    head = rounded_head(shape, how) if learning else 0.0
    if not how.packed:
        return asked * shape.vocabulary * padded + head
    chunk = min(asked, max(1, AT_ONCE // shape.vocabulary)) * shape.vocabulary
    narrow = chunk * BFLOAT16 if how.bfloat16 and learning else 0.0
    found = chunk * CHUNK_PER_LOGIT + narrow + head
    if not learning or how.lora_rank is not None:
        return found
    return max(found, narrow + 2 * head) + head_gradient(shape, how)


def rounded_head(shape: Shape, how: Computation) -> float:
    """The head's copy in bfloat16, made for a forward and once more for its backward."""
    return float(shape.vocabulary * shape.hidden * BFLOAT16) if how.bfloat16 else 0.0


def head_gradient(shape: Shape, how: Computation) -> float:
    """The gradient of the head's weight in one backward, beside that of the backward before."""
    return float(shape.vocabulary * shape.hidden * FLOAT32) if how.lora_rank is None else 0.0


def copies(shape: Shape, how: Computation, learning: bool) -> float:
    """Autocast's bfloat16 copies of weights in float32: kept for a pass, or each for the backward.

    learning: of a forward whose gradient is to come, for which our linear layers keep none (`rlhf.narrow`).
    """
    if learning and shape.lean:
        return 0.0
    of_a_pass = how.lora_rank is None and (how.whole or how.strategy == "zero3")
    kept = of_a_pass or (learning and not how.checkpointing)
    return float(shape.weights * BFLOAT16) if how.bfloat16 and kept else 0.0


def gathered(shape: Shape, how: Computation, learner: bool = True) -> float:
    """What stands whole while a shared-out model computes: all but its blocks, and two of them, one on its way.

    In float32, as it is sent, and in the type that is computed in; of a model that only answers, in this alone. ZeRO-3
    leaves what has been gathered where it is, up to a limit, and lets go of all of it at the forward's end.
    """
    if how.whole:
        return 0.0
    if not learner:
        return units(shape) * how.element
    if how.strategy == "zero3":
        return max(units(shape), min(shape.weights, LIVE)) * FLOAT32
    return units(shape) * (FLOAT32 + (BFLOAT16 if how.bfloat16 else 0))


def units(shape: Shape) -> float:
    """Weights of all but a model's blocks, and of two of these."""
    return shape.weights - shape.block_weights + 2 * shape.block_weights / shape.layers


def sending(shape: Shape, how: Computation, at_once: bool) -> float:
    """What a backward holds of gradients on their way to other processes.

    at_once: from its beginning. A block's, whole and once more to be sent, come when the logits' gradient has gone.
    """
    if how.lora_rank is not None and not at_once:  # none of the head's
        return 0.0
    if how.strategy in ("zero1", "zero2") and how.processes > 1:
        return float(FLOAT32 * how.bucket)
    if how.whole or how.lora_rank is not None or not at_once:
        return 0.0
    return 2 * FLOAT32 * shape.block_weights / shape.layers


def sampling(shape: Shape, how: Computation, load: RolloutLoad) -> Parts:
    """Decoding: keys and values of all tokens, the probabilities of one, and the weights where they are gathered."""
    if load.sampler in ("server", "beside"):
        return {}
    rows = load.generation_rows
    kept = how.element if how.packed else FLOAT32  # transformers' own cache keeps what autocast widens
    read = rows * load.prompt  # prompts of a forward
    if how.packed:
        read = min(read, max(PROMPT_TOKENS, load.prompt))
    of_each = NUCLEUS_PER_LOGIT if load.nucleus else CHOICE_PER_LOGIT
    replica = how.strategy in ("fsdp", "zero3") and not how.whole and load.sampler == "replica"
    found = forward(shape, how, read)
    return {
        "KV cache": float(rows * load.length * shape.layers * 2 * shape.key_value * kept),
        "logits": float(rows * shape.vocabulary * of_each),
        "generator": float(shape.weights * (FLOAT32 + (BFLOAT16 if how.bfloat16 else 0))) if replica else 0.0,
        "activations": found["activations"],
        "buffers": 0.0 if replica else found["buffers"],
    }
