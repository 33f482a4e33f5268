"""What a check says: ok, a warning or a failure, in one line with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Level = Literal["ok", "warning", "failure"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "failure")


class Facts(BaseModel):
    """What a node tells of itself, on its way to the first node as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Finding:
    """One line."""

    check: str
    level: Level
    what: str  # who, and what about it
    remedy: str = ""

    @property
    def line(self) -> str:
        """For people; always one line, whatever a system or a server has said."""
        line = "; ".join(filter(None, (self.what, self.remedy)))
        return " ".join("".join(each if each.isprintable() else " " for each in line).split())

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", what)


def warning(check: str, what: str, remedy: str) -> Finding:
    """A run would start, and not be what it could be."""
    return Finding(check, "warning", what, remedy)


def failure(check: str, what: str, remedy: str) -> Finding:
    """A run would not start, or end badly."""
    return Finding(check, "failure", what, remedy)


def worst(found: Iterable[Finding]) -> Level:
    """The worst level of all."""
    return max((finding.level for finding in found), key=LEVELS.index, default="ok")


def by_node(found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """What nodes have found of themselves, each thing once, with the nodes that it is true of unless all are."""
    whose: dict[Finding, list[str]] = {}
    for node, findings in found.items():
        for finding in findings:
            whose.setdefault(finding, []).append(node)
    return [
        finding if len(nodes) == len(found) else replace(finding, what=f"{listed(nodes)}: {finding.what}")
        for finding, nodes in whose.items()
    ]


def listed(names: Sequence[str], shown: int = 8) -> str:
    """Names for people: a, b and c; of many the first ones."""
    if len(names) > shown:
        return f"{', '.join(names[:shown])} and {len(names) - shown} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
