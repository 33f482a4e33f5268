"""How long comparisons are in the tokens of a recipe's model. Loads torch when it is asked, and not before."""

from __future__ import annotations

from pathlib import Path

from data.quality.check import Tokens
from rlhf.config import Recipe
from rlhf.recipe_memory import declared_context
from rlhf.types import Comparison
from stages.origins import first_model


def tokens_of(recipe: Recipe, tokenizer: Path | None = None) -> Tokens | None:
    """Lengths by a tokenizer's directory, or by the recipe's first model; None where the recipe makes its own.

    Raises ArtifactError where it cannot be loaded.
    """
    place = str(tokenizer) if tokenizer else first_model(recipe)
    if place is None:
        return None
    from reward_models.pairs import encode_comparison
    from rlhf.tokenization import load_tokenization

    tokenization = load_tokenization(place, recipe.model, recipe.model.added_tokens)
    most = recipe.reward.max_length or declared_context(place) or tokenization.tokenizer.model_max_length

    def measure(comparison: Comparison) -> int:
        row = encode_comparison(comparison, tokenization)
        return max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    return Tokens(measure, most, frozenset(tokenization.tokenizer.all_special_tokens))
