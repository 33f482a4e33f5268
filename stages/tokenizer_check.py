"""Whether the tokenizers that a recipe names keep to its contract. `rlhf doctor` starts it, the recipe being its input.

    python -m stages.tokenizer_check < recipe.json

One line: on standard output what was found, on standard error with exit code 2 what is wrong.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from data import sources
from rlhf.config import Recipe
from rlhf.errors import ContractError, RLHFError
from rlhf.recipe_memory import declared_context
from rlhf.references import kind_of
from rlhf.tokenization import load_tokenization
from stages.command import quiet_libraries
from stages.lineage import used_by
from stages.origins import first_model, model_place

LOOKED_AT = 200  # prompts


def look(recipe: Recipe) -> str:
    """What holds of the first model's tokenizer, on the prompts that PPO would answer. Raises RLHFError."""
    place = first_model(recipe)
    assert place is not None, "a model that is made here has its tokenizer made, too"
    tokenization = load_tokenization(place, recipe.model, recipe.model.added_tokens)
    told = [f"stop {tokenization.stop_id}, padding {tokenization.pad_id}"]
    told.append("with its chat template" if tokenization.chat else "no chat template")
    lengths = [
        len(tokenization.prompt(prompt))
        for prompt in islice(sources.prompts(recipe.data, recipe.seed).train, LOOKED_AT)
    ]
    context, room = declared_context(place), recipe.ppo.generation.max_new_tokens
    if context is not None and min(lengths) + room > context:
        raise ContractError(
            f"ppo.generation.max_new_tokens={room}: the shortest of {len(lengths)} prompts has {min(lengths)} tokens, "
            f"and the model's context is {context}; use fewer new tokens or shorter prompts"
        )
    told.append(f"{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens")
    used = used_by(recipe, "reward")
    if used and kind_of(used) == "model" and Path(reward := model_place(used, recipe.data)).is_dir():
        other = load_tokenization(reward, recipe.model, frozen=True).contract
        differing = sorted({*tokenization.differing(other)} - {"pad_id"})
        told.append(
            f"the reward model is fed text ({', '.join(differing)} differ)"
            if differing
            else "that of the reward model is the same"
        )
    return f"{place}: {', '.join(told)}"


def main() -> int:
    """Say it in a line; the exit code."""
    quiet_libraries()
    try:
        print(look(Recipe.model_validate_json(sys.stdin.read())))
    except RLHFError as error:
        print(error.problems[0], file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
