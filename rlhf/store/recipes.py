"""The recipe that a complete stage was made by, as its manifest keeps it. Loads no torch."""

from __future__ import annotations

import json

from pydantic import ValidationError

from rlhf.config import Recipe
from rlhf.errors import ArtifactError
from rlhf.store.artifact import MANIFEST, Artifact


def recipe_of(artifact: Artifact, remedy: str) -> Recipe:
    """The recipe in an artifact's manifest; of another version it is an ArtifactError that ends in the remedy."""
    try:
        return Recipe.model_validate_json(json.dumps(artifact.manifest.get("recipe")))
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]
        place = ".".join(map(str, reason["loc"])) or "recipe"
        raise ArtifactError(
            f"{artifact.directory / MANIFEST}: its recipe is of another version ({place}: {reason['msg']}); {remedy}"
        ) from error
