"""What models hold by themselves: weights, gradients, the optimizer's state, and buffers of what sends them."""

from __future__ import annotations

from rlhf.memory.computation import FLOAT32, Computation
from rlhf.memory.parts import Parts
from rlhf.shapes import Shape

MOMENTS = 2 * FLOAT32  # AdamW's, of each weight that learns (Loshchilov & Hutter 2019)
BITS = {"nf4": 4.5, "int8": 8.5}  # per quantised weight, the constants of its block included
LIVE = 1_000_000_000  # weights that ZeRO-3 has gathered at most, until a forward's end


def learner(shape: Shape, how: Computation, bucketed: bool = False) -> Parts:
    """What stands of a model that learns.

    bucketed: DDP sends gradients from copies, as in the trainers of SFT and reward; PPO's engine from where they are.
    """
    learning = trainable(shape, how)
    below = 0.0 if how.lora_rank is None else frozen(shape, how)
    master = FLOAT32 if how.deepspeed else 0  # the optimizer's own share of the weights, also of those in float32
    return {
        "weights": 0.0 if how.offloaded == "all" else (below + learning * FLOAT32) / how.weights_over,
        "gradients": gradients(shape, how) if stay(how, bucketed) else 0.0,
        "optimizer": 0.0 if how.offloaded else learning * (MOMENTS + master) / how.moments_over,
        "buffers": buffers(shape, how, bucketed),
    }


def gradients(shape: Shape, how: Computation) -> float:
    """Gradients of all that learns, once they are complete."""
    if how.offloaded and how.strategy != "zero1":  # which keeps them whole until the optimizer's step
        return 0.0
    return trainable(shape, how) * FLOAT32 / how.gradients_over


def stay(how: Computation, bucketed: bool) -> bool:
    """Whether the memory of gradients is kept from step to step."""
    return how.strategy == "zero3" or (how.strategy == "ddp" and how.processes > 1 and not bucketed)


def buffers(shape: Shape, how: Computation, bucketed: bool) -> float:
    """What stands for sending gradients: DDP's buckets, where gradients are not in them; ZeRO-3's."""
    if how.strategy == "ddp":
        return float(FLOAT32 * trainable(shape, how)) if how.processes > 1 and bucketed else 0.0
    return float(FLOAT32 * how.bucket) if how.strategy == "zero3" else 0.0


def answering(shape: Shape, how: Computation) -> Parts:
    """A model that only answers, in the type that is computed in."""
    return {"weights": 0.0 if how.offloaded == "all" else shape.weights * how.element / how.weights_over}


def frozen(shape: Shape, how: Computation) -> float:
    """The weights below adapters: float32, or few bits for the blocks' linear layers."""
    if how.quantization is None:
        return shape.weights * FLOAT32
    others = shape.weights - shape.block_weights  # embeddings, head
    return shape.block_weights * BITS[how.quantization] / 8 + others * FLOAT32


def trainable(shape: Shape, how: Computation) -> int:
    """How many weights learn."""
    return shape.weights if how.lora_rank is None else shape.adapter_weights(how.lora_rank)


def stepping(shape: Shape, how: Computation) -> float:
    """Copies of the gradients that DeepSpeed makes for AdamW's step, which itself needs nothing beside its state."""
    copies = {"zero1": 1, "zero2": 1, "zero3": 2}.get(how.strategy, 0)
    return 0.0 if how.offloaded else copies * trainable(shape, how) * FLOAT32 / how.moments_over
