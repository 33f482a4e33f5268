"""Recipes from files: strict YAML, a `base` to build on, dotted overrides; all problems are reported at once.

`load_recipe("demo", ["ppo.kl.coef=0.1", "data.prompts.0.count=500"])` reads the shipped recipe of that name. Mappings
of a recipe are merged into those of its base, and those of an override into the recipe's; anything else replaces.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rlhf.config import Recipe, Section
from rlhf.errors import ConfigError
from rlhf.recipe_yaml import Dumper, Loader

# A section's keys; in brackets, those of each item of a list; or what is known of a single value.
Schema: TypeAlias = "dict[str, Schema] | list[Schema] | FieldInfo"


def _schema(section: type[Section]) -> dict[str, Schema]:
    schema: dict[str, Schema] = {}
    for name, info in section.model_fields.items():
        kinds = (info.annotation, *get_args(info.annotation))
        nested = next((_schema(kind) for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        schema[name] = info if nested is None else [nested] if get_origin(info.annotation) is list else nested
    return schema


def _paths(schema: Schema, path: str = "") -> Iterator[str]:
    yield from [path] if path else []
    if not isinstance(schema, FieldInfo):
        for key, inner in schema.items() if isinstance(schema, dict) else [("0", schema[0])]:
            yield from _paths(inner, _join(path, key))


def _join(path: str, key: object) -> str:
    name = key if isinstance(key, str) and key and key.isprintable() else _shown(key)
    return f"{path}.{name}" if path else name


def _shown(value: object) -> str:
    """A value as YAML would have it, on one line and short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_/][\w./:@-]{0,57}", value):
        return value
    try:
        return " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python does not write integers of more than 4,300 digits
        return "(a huge number)"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60
_SCHEMA = _schema(Recipe)
_ALL_PATHS = list(_paths(_SCHEMA))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file or by the name of a shipped one; every problem becomes a line of one ConfigError."""
    draft, path = _Draft(), Path(path)
    is_name = path.name == str(path) and not os.path.isfile(path)
    readable = draft.read(shipped_recipes().get(path.name, path) if is_name else path)
    for text in overrides:
        try:
            draft.override(text)
        except ConfigError as error:
            draft.problems += error.problems
    recipe = draft.validated() if readable else None
    if recipe is None or draft.problems:
        raise ConfigError(*dict.fromkeys(draft.problems))
    return recipe


def resolved_yaml(recipe: Recipe, without: Iterable[str] = ()) -> str:
    """The full recipe, defaults written out, as YAML that loads back to an equal recipe.

    without: dotted fields that are left out where they have their defaults.
    """
    fields, defaults = recipe.model_dump(), Recipe().model_dump()
    for field in without:
        *sections, name = field.split(".")
        own, default = (functools.reduce(dict.__getitem__, sections, tree) for tree in (fields, defaults))
        if own[name] == default[name]:
            del own[name]
    return yaml.dump(fields, Dumper=Dumper, sort_keys=False, width=120)  # ASCII: PyYAML folds raw U+0085


def shipped_recipes() -> dict[str, Path]:
    """Shipped recipes by name; `stages` is found without being imported."""
    spec = importlib.util.find_spec("stages")
    folders = spec.submodule_search_locations if spec else None
    return {file.stem: file for folder in folders or () for file in sorted(Path(folder, "recipes").glob("*.yaml"))}


def _text(path: Path, name: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f"line {line} is not UTF-8 text; save the file as UTF-8"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        problem = f"cannot be read ({getattr(error, 'strerror', error)}); give a recipe file or one of the shipped: "
        problem += ", ".join(shipped_recipes()) or "none"
    raise ConfigError(f"{name}: {problem}")


def _parsed(text: str, name: str) -> Any:
    line, column = 0, 0
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        if mark := error.problem_mark or error.context_mark:
            line, column = mark.line, mark.column
        problem = ", ".join(filter(None, (error.context, error.problem)))
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position), error.position - text.rfind("\n", 0, error.position) - 1
        problem = f"the character U+{error.character:04X} is not allowed"
    except RecursionError:
        problem = "nested too deeply"
    where = f"{name}, line {line + 1}, column {column + 1}"
    raise ConfigError(f"{where}: {' '.join(problem.split())}; correct the YAML there")


class _Draft:
    """A recipe in the making: the values so far, where each came from, and what is wrong."""

    def __init__(self) -> None:
        self.values: Any = {}
        self.origins: dict[str, str] = {}  # dotted path -> a file, or "override"
        self.problems: list[str] = []
        self.unknown: list[str] = []

    def read(self, path: Path, chain: tuple[Path, ...] = ()) -> bool:
        """Merge a file over its base; False if one of them is no recipe at all."""
        name = _join("", str(path)) + (f" (base of {chain[-1]})" if chain else "")
        try:
            values = _parsed(_text(path, name), name)
            if not isinstance(values, dict):
                what = "is empty" if values is None else f"holds {_shown(values)}, no mapping"
                raise ConfigError(f"{name}: {what}; write keys and values, for example seed: 0")
        except ConfigError as error:
            self.problems += error.problems
            return False
        base = values.pop("base", None)
        complete = base is None or self._read_base(base, (*chain, path))
        self.origins[""] = _join("", str(path))
        self.values = self._merged(self.values, values, _SCHEMA, "", self.origins[""])
        return complete

    def _read_base(self, base: object, chain: tuple[Path, ...]) -> bool:
        path = chain[-1].parent / base if isinstance(base, str) and base else None
        if path and os.path.abspath(path) not in [os.path.abspath(file) for file in chain]:
            return self.read(path, chain)
        problem = "should be the path of a recipe, relative to this one"
        if path:
            problem = f"closes a circle, {' -> '.join(str(file) for file in (*chain, path))}; remove one of these bases"
        self.problems.append(f"{_join('', str(chain[-1]))}: base={_shown(base)} {problem}")
        return False

    def override(self, text: str) -> None:
        """Apply one `key=value`, the value read as YAML."""
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise ConfigError(f"override {_shown(text)} is not key=value; write it like ppo.kl.coef=0.05")
        nested = _parsed(value, f"override {_join('', key)}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        self.values = self._merged(self.values, nested, _SCHEMA, "", "override")

    def _merged(self, old: Any, new: Any, schema: Schema, path: str, origin: str) -> Any:
        """`new` over `old`, without unknown keys; as deep as the schema, however strange the values."""
        if isinstance(schema, dict) and isinstance(new, dict):
            merged = dict(old) if isinstance(old, dict) else {}
            for key, value in new.items():
                if key in schema:
                    merged[key] = self._merged(merged.get(key), value, schema[key], _join(path, key), origin)
                else:
                    self.unknown.append(_join(path, key))
                    given = f"{origin}: {_join(path, key)}={_shown(value)}"
                    self.problems.append(f"{given} is not a known key; {_hint(path, key, schema)}")
            return merged
        if isinstance(schema, list) and isinstance(new, dict) and origin == "override":
            return self._merged_items(old, new, schema[0], path)
        self.origins[path] = origin
        if isinstance(schema, list) and isinstance(new, list):
            return [self._merged(None, item, schema[0], _join(path, i), origin) for i, item in enumerate(new)]
        return new

    def _merged_items(self, old: Any, new: dict[Any, Any], schema: Schema, path: str) -> Any:
        """Items given by their index; a list that the recipe leaves out starts from its default."""
        items: Any = Recipe().model_dump() if old is None else old
        for key in path.split(".") if old is None else ():
            items = items[key]
        indexes = [str(index) for index in range(len(items))] if isinstance(items, list) else []
        for key, value in new.items():
            if str(key) in indexes:
                inner = self._merged(items[int(key)], value, schema, _join(path, key), "override")
                items = [*items[: int(key)], inner, *items[int(key) + 1 :]]
            else:
                given = f"override: {_join(path, key)}={_shown(value)}"
                self.problems.append(f"{given} names no item of {path}; its indexes are {', '.join(indexes) or 'none'}")
        return items

    def validated(self) -> Recipe | None:
        """The recipe, or None with the problems noted."""
        try:
            return Recipe.model_validate(self.values)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        for path in dict.fromkeys(_place(detail["loc"])[0] for detail in errors):
            details = [detail for detail in errors if _place(detail["loc"])[0] == path]  # of a union, one for each
            if details[0]["type"] == "value_error" and any(key.startswith(f"{path}.") for key in self.unknown):
                continue  # what does not fit together may be due to the misspelled key
            known = path
            while known not in self.origins:
                known = known.rpartition(".")[0]
            self.problems.append(f"{self.origins[known]}: {_explained(path, details)}")
        return None


def _hint(parent: str, key: object, siblings: Iterable[str]) -> str:
    name, path = _join("", key), _join(parent, key)
    if path in _ALL_PATHS:
        return f"write {': {'.join(path.split('.'))}: ...{'}' * path.count('.')}"
    spelt = {known.replace("_", "."): known for known in _ALL_PATHS}
    ending = [known for other, known in spelt.items() if f".{other}".endswith("." + name.replace("_", "."))]
    near = [known for known in ending if parent and known.startswith(f"{parent}.")]
    near = near or [spelt[other] for other in difflib.get_close_matches(path.replace("_", "."), spelt, 1, 0.95)]
    if not near and (close := difflib.get_close_matches(name, siblings, n=1)):
        return f"did you mean {_join(parent, close[0])}?"
    near = near or ending or [spelt[key] for key in difflib.get_close_matches(path.replace("_", "."), spelt, 1, 0.85)]
    known = f"known keys{' of ' + parent if parent else ''}: {', '.join(siblings)}"
    return f"did you mean {' or '.join(near[:3])}?" if near else known


def _place(location: tuple[int | str, ...]) -> tuple[str, Schema]:
    """The dotted path and the schema of a pydantic location, whose tail may name an alternative of a union."""
    path, node = "", cast(Schema, _SCHEMA)
    for part in location:
        if not isinstance(node, FieldInfo):
            path, node = _join(path, part), node[0] if isinstance(node, list) else node[str(part)]
    return path, node


def _explained(path: str, details: list[ErrorDetails]) -> str:
    error, value, schema = details[0], details[0]["input"], _place(details[0]["loc"])[1]
    types = {detail["type"] for detail in details}
    if error["type"] == "missing":
        return f"{path} is missing; add it"
    if error["type"] == "value_error":  # of a section: the message tells values and remedy
        text = error["msg"].removeprefix("Value error, ")
        between = "." if isinstance(schema, dict) and re.split("[.=]", text)[0] in schema else ": "
        return f"{path}{between}{text}" if path else text
    remedy = "; leave it out for the default" if value is None else ""
    if isinstance(value, float) and value.is_integer() and "int_type" in types:
        remedy = f"; write {value:.0f}"
    elif isinstance(value, str) and types & {"int_type", "float_type"} and re.fullmatch(r"[-+.\deE]*\d", value):
        remedy = f"; write {value} without quotes"
    elif isinstance(schema, FieldInfo) and not schema.is_required():
        remedy = f"; the default is {_shown(schema.get_default())}"
    wishes = [detail["msg"].partition(" should ")[2] or f"be valid ({detail['msg']})" for detail in details]
    wish = re.sub(r"a valid dictionary.*", "a mapping of keys", " or ".join(dict.fromkeys(wishes)))
    return f"{path}={_shown(value)} should {wish}{remedy}"
