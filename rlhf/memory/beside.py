"""What vLLM in the training process has from beginning to end: weights, and room for keys and values.

`rlhf.generation.vllm_here` asks for that room, and the estimate counts it, by the same function.
"""

from __future__ import annotations

from rlhf.memory.computation import Computation
from rlhf.memory.forwards import RolloutLoad
from rlhf.memory.parts import Parts
from rlhf.shapes import Shape

LONGEST = 8192  # tokens of a sequence, where a model could take more: room for one is made whether it comes or not
BLOCK = 128  # tokens of keys and values that vLLM gives out at a time, at most


def longest_sequence(max_new_tokens: int, context: int) -> int:
    """Tokens of a sequence, prompt and response, at most; context: of the model."""
    return min(context, max(LONGEST, 2 * max_new_tokens))


def room(rows: int, max_new_tokens: int, context: int) -> int:
    """Tokens for whose keys and values there is room.

    In whole blocks, and one more a sequence: for rows of twice max_new_tokens, and for one of the longest, without
    which vLLM does not start. context: of the model, tokens.
    """
    each, longest = (
        -(-tokens // BLOCK) + 1 for tokens in (2 * max_new_tokens, longest_sequence(max_new_tokens, context))
    )
    return max(rows * each, longest) * BLOCK


def beside(shape: Shape, how: Computation, load: RolloutLoad) -> Parts:
    """What vLLM in the same process has from beginning to end."""
    tokens = room(load.generation_rows, load.response, shape.context)
    cache = tokens * shape.layers * 2 * shape.key_value * how.element
    return {"generator": float(shape.weights * how.element), "KV cache": float(cache)}
