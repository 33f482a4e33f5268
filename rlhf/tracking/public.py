"""The recipe as trackers show it: plain values, without what gives access to something."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_ACCESS = re.compile(
    r"(?<=://)[^/@\s]+@|(?<=[?&])([^=&#\s]*(?:token|key|secret|password|signature)[^=&#\s]*=)[^&#\s]+", re.I
)


def public(value: Any) -> Any:
    """A recipe's values without names, passwords and tokens in addresses: these belong into the environment."""
    if isinstance(value, Mapping):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    return (
        _ACCESS.sub(lambda found: f"{found[1] or ''}***{'' if found[1] else '@'}", value)
        if isinstance(value, str)
        else value
    )


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values, as overrides name them; an empty section is a value."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    pairs = list(items)
    if not pairs:
        yield path, value
    for key, inner in pairs:
        yield from flattened(inner, f"{path}.{key}" if path else str(key))
