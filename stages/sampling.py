"""Responses of a policy to prompts, sampled by all ranks together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rlhf.config import Recipe
from rlhf.distributed import gather_objects, rank, world_size
from rlhf.generation.native import NativeGenerator
from rlhf.models import is_quantized
from rlhf.ppo.experience import complete
from rlhf.tokenization import Tokenization
from rlhf.types import Completion, Ended, Generator, Prompt


def native_generator(policy: nn.Module, tokenization: Tokenization, recipe: Recipe) -> NativeGenerator:
    """A sampler of a policy with the recipe's settings."""
    bfloat16 = recipe.model.dtype == "bfloat16"
    generator = NativeGenerator(policy, tokenization.stop_id, tokenization.pad_id, recipe.ppo.generation, bfloat16)
    # Kernels for weights of few bits round otherwise where a gradient is to come.
    generator.exact = generator.exact and not is_quantized(policy)
    return generator


def rollout_generator(policy: nn.Module, tokenization: Tokenization, recipe: Recipe) -> Generator:
    """What samples PPO's rollouts: the policy itself, vLLM in this process, or the servers that the recipe names."""
    config = recipe.ppo.generation
    if config.engine == "native":
        return native_generator(policy, tokenization, recipe)
    if config.vllm_here:
        from rlhf.generation.vllm_here import VllmHere

        bfloat16 = recipe.model.dtype == "bfloat16"
        # It makes room for all rows that it may sample together, and keeps it: for no more than there ever are.
        config = config.model_copy(update={"batch_size": recipe.ppo.rows_together()})
        return VllmHere(policy, tokenization.stop_id, tokenization.pad_id, config, bfloat16)
    from rlhf.generation.vllm import VllmGenerator

    return VllmGenerator(policy, tokenization.stop_id, tokenization.pad_id, config)


def sample(
    policy: nn.Module,
    tokenization: Tokenization,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    seed: int | None = None,
    ended: Ended | None = None,
) -> list[Completion]:
    """One response to each prompt, on every rank; the noise depends on the seed (the recipe's) and the row alone.

    ended: is told of each of this rank's as it ends.
    """
    generator = native_generator(policy, tokenization, recipe)
    rows = range(rank(), len(prompts), world_size())
    found: list[tuple[int, Completion]] = []
    if len(rows):
        asked = [prompts[row] for row in rows]
        tokens = [tokenization.prompt(prompt) for prompt in asked]
        noise = recipe.seed if seed is None else seed
        sampled = generator.sample(tokens, rows, seed=noise, step=0, ended=ended)
        found = list(zip(rows, complete(asked, tokens, tokenization, sampled), strict=True))
    # Every rank must see the very same responses, so each takes over what the others sampled.
    return [completion for _, completion in sorted(sum(gather_objects(found), []), key=lambda row: row[0])]
