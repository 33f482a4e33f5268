"""Bytes by what they are for: parts of a role, roles of a phase, phases of a stage. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Parts = Mapping[str, float]  # bytes, by the names of PARTS
Roles = Mapping[str, Parts]

PARTS = ("weights", "gradients", "optimizer", "buffers", "activations", "logits", "KV cache", "generator")
ROLES = ("policy", "value model", "reference", "reward model")


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process; those of different phases are never held at the same time."""

    standing: Mapping[str, Parts]  # of each role, from the stage's beginning to its end
    passing: Mapping[str, Roles]  # of each phase of a step, beside what stands

    @property
    def stands(self) -> float:
        """All that stands, bytes."""
        return total_of(self.standing)

    @property
    def passes(self) -> float:
        """What the largest phase adds, bytes."""
        return max(map(total_of, self.passing.values()), default=0.0)

    @property
    def total(self) -> float:
        """The peak, bytes."""
        return self.stands + self.passes

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.passing, key=lambda phase: total_of(self.passing[phase])) if self.passing else ""

    def during(self, phase: str) -> dict[str, dict[str, float]]:
        """All that is held in a phase, by role and part."""
        return added(self.standing, self.passing.get(phase, {}))


def total_of(roles: Roles) -> float:
    """Bytes of all roles."""
    return sum(sum(parts.values()) for parts in roles.values())


def added(*each: Roles) -> dict[str, dict[str, float]]:
    """Sums by role and part."""
    found: dict[str, dict[str, float]] = {}
    for roles in each:
        for role, parts in roles.items():
            own = found.setdefault(role, {})
            for part, size in parts.items():
                own[part] = own.get(part, 0.0) + size
    return found
