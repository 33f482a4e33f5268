"""The recipe that was submitted, brought into the run directory by the first node that sees both."""

from __future__ import annotations

from pathlib import Path

from launch.pipeline import require_own
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from rlhf.store.artifact import write_text


def bring_recipe(recipe: Path, run: Path) -> None:
    """Have a recipe's text as RUN/recipe.yaml; nothing is written where it stands there.

    Raises ConfigError where it cannot be read, ArtifactError where the directory is that of another recipe's run.
    """
    try:
        text = recipe.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--recipe={recipe}: cannot be read ({error}); mount the ConfigMap there") from error
    require_own(load_recipe(recipe), run)
    path = run / "recipe.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        run.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
