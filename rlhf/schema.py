"""The JSON schema of a recipe, for editors: each key, its values and default, and the comment beside it in rlhf/config.

    # yaml-language-server: $schema=.rlhf/recipe.schema.json

as the first line of a recipe makes editors complete keys, show what they mean and underline what is wrong. The schema
is made from the sections themselves, so it cannot lag behind them; `stages/recipes/recipe.schema.json`, which the
shipped recipes name, is tested to be equal. Loads no torch.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from rlhf.config import Recipe, Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MODELINE = "# yaml-language-server: $schema="
# A key of recipe files, not of recipes; see `rlhf.recipe`.
BASE = {"type": "string", "description": "A recipe to build on, relative to this one; what stands here goes over it."}


def recipe_schema() -> dict[str, Any]:
    """The schema as plain values, JSON Schema of 2020-12."""
    schema = Recipe.model_json_schema()
    sections = {section.__name__: section for section in sections_of(Recipe)}
    _document(schema, Recipe)
    for name, definition in schema["$defs"].items():
        _document(definition, sections[name])
        if name not in _ITEMS:  # a base may give what is missing here; items of lists are not merged
            definition.pop("required", None)
    schema["properties"] = {"base": BASE, **schema["properties"]}
    return {"$schema": DIALECT, **schema}


def schema_text() -> str:
    """The schema as a file has it."""
    return json.dumps(recipe_schema(), indent=2) + "\n"


def modeline(recipe: Path, schema: Path) -> str:
    """The first line of a recipe that names its schema, relative to the recipe."""
    return MODELINE + Path(os.path.relpath(schema, recipe.parent)).as_posix()


def sections_of(section: type[Section]) -> Iterator[type[Section]]:
    """A section and those below it, each once."""
    seen: set[type[Section]] = set()
    waiting = [section]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        yield here
        for info in here.model_fields.values():
            waiting += [kind for kind in _kinds(info.annotation) if issubclass(kind, Section)]


def comments_of(section: type[Section]) -> dict[str, str]:
    """What the source says of each field: the comment lines above it and the comment behind it.

    A field that says nothing itself inherits what the section's base says of it. Without a source, nothing.
    """
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if issubclass(kind, Section) and kind is not Section:
            found |= {name: text for name, text in _own_comments(kind).items() if text}
    return found


def _own_comments(section: type[Section]) -> dict[str, str]:
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(section))
    except (OSError, TypeError):
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    (body,) = ast.parse(source).body
    found: dict[str, str] = {}
    for node in body.body if isinstance(body, ast.ClassDef) else []:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first = node.lineno
        while first - 1 in comments and not comments[first - 1].line[: comments[first - 1].start[1]].strip():
            first -= 1
        lines = [*range(first, node.lineno), *range(node.lineno, (node.end_lineno or node.lineno) + 1)]
        texts = (comments[line].string.lstrip("# ").rstrip() for line in lines if line in comments)
        found[node.target.id] = " ".join(texts)
    return found


def _document(definition: dict[str, Any], section: type[Section]) -> None:
    """Put a section's comments on its properties, in place; titles and defaults of whole sections only clutter."""
    comments = comments_of(section)
    definition.pop("title", None)
    for name, value in definition.get("properties", {}).items():
        value.pop("title", None)
        default = value.get("default")
        if isinstance(default, dict) or (isinstance(default, list) and any(isinstance(item, dict) for item in default)):
            del value["default"]
        if comments.get(name):
            value["description"] = comments[name]


def _kinds(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)


def _items(section: type[Section]) -> set[str]:
    """Sections that stand in lists."""
    found: set[str] = set()
    for here in sections_of(section):
        for info in here.model_fields.values():
            if getattr(info.annotation, "__origin__", None) is list:
                found |= {kind.__name__ for kind in _kinds(info.annotation) if issubclass(kind, Section)}
    return found


_ITEMS = _items(Recipe)
