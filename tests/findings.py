"""What tests look at of what checks find."""

from __future__ import annotations

from launch.checking.finding import Finding


def levels(found: list[Finding]) -> list[str]:
    return [each.level for each in found]


def one(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding
