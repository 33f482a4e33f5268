"""The YAML of recipes: safe, with floats as people write them, and every key once."""

from __future__ import annotations

import re
import reprlib
from typing import Any

import yaml

# YAML 1.1 wants a dot and a signed exponent in a float, so that 1e-5 would be a string.
FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z")


class Loader(yaml.SafeLoader):
    """Safe YAML, with floats as people write them; a key given twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose, then look for duplicates: later, `<<` has mixed in keys that may rightly be overridden."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (known := (key.tag, key.value)) in lines:
                problem = f"the key {key.value!r} was already given in line {lines[known]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[known] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Name the place of a scalar that contradicts its tag, such as `!!int x` or `0x_`."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError):
            problem = f"{reprlib.repr(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


class Dumper(yaml.SafeDumper):
    """Quotes the strings that `Loader` would read as floats."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)  # no setting is a date
Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
