"""`rlhf schema`: the JSON schema of recipes, for editors. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf.schema import schema_text
from rlhf.settings import settings_markdown
from rlhf.store.artifact import write_text


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file to write. Default: the terminal.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A page for people instead: docs/settings.md.")] = False,
) -> None:
    """The JSON schema of a recipe: editors complete its keys, show what they mean, and underline what is wrong.

    A recipe names its schema in the first line, `# yaml-language-server: $schema=FILE`, relative to itself; editors
    with a YAML language server read that. `rlhf init` writes the line and the file, .rlhf/recipe.schema.json beside the
    recipe. After an upgrade of rlhf, write the file anew:

        rlhf schema --output .rlhf/recipe.schema.json

        rlhf schema --markdown --output settings.md
    """
    if markdown:
        write_page(output)
        return
    if output is None:
        typer.echo(schema_text(), nl=False)
        return
    write_schema(output)
    typer.echo(f"wrote {output}; name it in a recipe's first line: # yaml-language-server: $schema=FILE")


def write_page(output: Path | None) -> None:
    """Every setting with its values, default and comment, to a file or the terminal."""
    if output is None:
        typer.echo(settings_markdown(), nl=False)
    else:
        write_text(output, settings_markdown())
        typer.echo(f"wrote {output}")


def write_schema(path: Path) -> None:
    """Write the schema, and the folders above it, unless the file says the same already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != schema_text():
        write_text(path, schema_text())
