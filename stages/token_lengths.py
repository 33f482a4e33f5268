"""How long comparisons are in the tokens of a recipe's model. Loads torch when it is asked, and not before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data.quality.survey import Tokens
from rlhf.config import Recipe
from rlhf.recipe_memory import declared_context
from rlhf.store.artifact import digest
from rlhf.types import Comparison
from stages.origins import first_model

if TYPE_CHECKING:
    from rlhf.tokenization import Tokenization


def tokens_of(recipe: Recipe, tokenizer: Path | None = None) -> Tokens | None:
    """Lengths by a tokenizer's directory, or by the recipe's first model; None where the recipe makes its own.

    Raises ArtifactError where it cannot be loaded.
    """
    place = str(tokenizer) if tokenizer else first_model(recipe)
    if place is None:
        return None
    from rlhf.tokenization import load_tokenization

    return tokens_by(load_tokenization(place, recipe.model, recipe.model.added_tokens), place, recipe)


def tokens_by(tokenization: Tokenization, model: str | Path, recipe: Recipe) -> Tokens:
    """Lengths by a tokenizer, against `reward.max_length` or the context that the model in a directory declares."""
    from reward_models.pairs import encode_comparison

    most = recipe.reward.max_length or declared_context(model) or tokenization.tokenizer.model_max_length

    def measure(comparison: Comparison) -> int:
        row = encode_comparison(comparison, tokenization)
        return max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    reserved = frozenset(tokenization.tokenizer.all_special_tokens)
    return Tokens(measure, most, reserved, digest([tokenization.contract, most]))
