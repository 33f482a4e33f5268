"""Every setting of a recipe as a page: its values, its default, and the comment beside it in rlhf/config.

The page is made from the sections themselves, as the schema is: `rlhf schema --markdown -o docs/settings.md`. Loads no
torch.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rlhf.config import Recipe, Section
from rlhf.schema import comments_of

Row = tuple[str, str, str, str]  # setting, values, default, what
HEAD = """# Settings

Every setting of a recipe with its values and its default, which stands where a recipe says nothing. How a recipe is
read, and how one field is overridden for once: [Recipes](recipes.md). This page is made from `rlhf/config`:
`rlhf schema --markdown -o docs/settings.md`.
"""
NAMES = {str: "text", int: "whole number", float: "number", bool: "true, false", type(None): "null"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def settings_markdown() -> str:
    """The page: a table for the recipe itself and one for each of its sections."""
    sections = {name: kind for name, info in Recipe.model_fields.items() if (kind := section_of(info.annotation))}
    seen = {kind: name for name, kind in sections.items()}
    run = [row for row in _rows(Recipe, "", seen) if row[0].strip("`") not in sections]
    parts = [HEAD, _table("The run", Recipe, run)]
    parts += [_table(f"`{name}`", kind, list(_rows(kind, f"{name}.", seen))) for name, kind in sections.items()]
    return "\n".join(parts)


def _table(title: str, section: type[Section], rows: list[Row]) -> str:
    lines = [f"## {title}", "", " ".join((section.__doc__ or "").split()), ""]
    lines += ["| setting | values | default | what |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _rows(section: type[Section], prefix: str, seen: dict[type[Section], str]) -> Iterator[Row]:
    """A row for each field; fields of sections below follow, once for all places that take such a section."""
    comments = comments_of(section)
    for name, info in section.model_fields.items():
        path, what, inner = f"{prefix}{name}", comments.get(name, ""), section_of(info.annotation)
        if inner is None:
            yield f"`{path}`", values_of(info.annotation, info.metadata), default_of(info), what
            continue
        listed = get_origin(info.annotation) is list
        if inner in seen:
            kind = f"{'a list, ' if listed else ''}as `{seen[inner]}`"
            yield f"`{path}`", kind if info.default is not None else f"{kind}; null", default_of(info), what
            continue
        seen[inner] = path
        if listed or info.default is None:
            kind = "a list, N from 0" if listed else "what follows; null"
            yield f"`{path}`", kind, default_of(info), what or " ".join((inner.__doc__ or "").split())
        yield from _rows(inner, f"{path}.N." if listed else f"{path}.", seen)


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, alone, or null, or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for kind in get_args(annotation) if (found := section_of(kind))), None)


def values_of(annotation: Any, metadata: list[Any]) -> str:
    """What a field may hold, for people."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_of(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return "; ".join(values_of(kind, metadata if kind is not type(None) else []) for kind in arguments)
    if origin is list:
        return f"a list: {values_of(arguments[0], [])}"
    flat = [inner for mark in metadata for inner in getattr(mark, "metadata", [mark])]
    bounds = [
        f"{sign} {getattr(mark, key):.10g}" for mark in flat for key, sign in BOUNDS.items() if hasattr(mark, key)
    ]
    return f"{NAMES[annotation]} {', '.join(bounds)}".strip() if annotation in (int, float) else NAMES[annotation]


def default_of(info: FieldInfo) -> str:
    """A default as YAML has it, of lists of sections too."""
    if info.is_required():
        return "required"
    value = info.get_default()
    if isinstance(value, Section):
        return ""
    if isinstance(value, list):
        items = [item.model_dump(exclude_defaults=True) if isinstance(item, Section) else item for item in value]
        return f"`{json.dumps(items)}`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"
