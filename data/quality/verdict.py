"""Findings, each with how bad it is by the recipe's limits, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf.config import CheckConfig, LimitsConfig

Severity = Literal["info", "warn", "fail"]
Leaving = Literal["dropped", "droppable", "kept"]
# Every kind, and whether a cleaned file leaves out what it is of: by itself, when asked to, or never, for it is of no
# single vote.
KINDS: dict[str, Leaving] = {
    "malformed": "dropped",
    "empty": "dropped",
    "identical": "dropped",
    "duplicate": "dropped",
    "near_duplicate": "dropped",
    "contradiction": "dropped",
    "leakage": "dropped",
    "length_bias": "kept",
    "position_bias": "kept",
    "too_long": "dropped",
    "low_agreement": "kept",
    "template": "dropped",
    "tie": "droppable",
    "truncated": "droppable",
    "language": "droppable",
    "offensive": "droppable",
}
_ORDER = ("fail", "warn", "info")


@dataclass(frozen=True)
class Finding:
    """Something that was found."""

    kind: str
    severity: Severity
    count: int  # votes, records or pairs; see `message`
    message: str  # what it is, in a line
    remedy: str
    examples: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        """For people, in a line: what, the first place, the remedy."""
        places = [example["place"] for example in self.examples[:1] if "place" in example]
        return f"{self.kind}: {self.message}{f' (first {places[0]})' if places else ''}; {self.remedy}"


@dataclass(frozen=True)
class Verdict:
    """What a check came to."""

    findings: list[Finding]
    summary: Mapping[str, Any]  # counts and measured shares; JSON values
    sizes: Mapping[str, Any] = field(default_factory=dict)  # what the pictures of the HTML page show

    @property
    def verdict(self) -> str:
        """The worst of the findings: pass, warn or fail."""
        severities = {finding.severity for finding in self.findings}
        return next((worst for worst in ("fail", "warn") if worst in severities), "pass")

    def of(self, severity: str) -> list[Finding]:
        """The findings of a severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def headline(self) -> str:
        """The verdict in a line."""
        counted = [f"{len(self.of(severity))} {severity}" for severity in _ORDER if self.of(severity)]
        return f"{self.verdict}: {self.summary['comparisons']:,} comparisons, {', '.join(counted) or 'nothing found'}"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Verdict:
        """The inverse of `as_json`; KeyError or TypeError for what is none."""
        return cls([Finding(**finding) for finding in value["findings"]], value["summary"])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        findings = [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "count": finding.count,
                "message": finding.message,
                "remedy": finding.remedy,
                "examples": finding.examples,
            }
            for finding in self.findings
        ]
        return {"verdict": self.verdict, "findings": findings, "summary": dict(self.summary)}

    def record(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        kinds = {finding.kind: {"severity": finding.severity, "count": finding.count} for finding in self.findings}
        return {"verdict": self.verdict, "comparisons": self.summary["comparisons"], "findings": kinds}


def judged(limits: LimitsConfig, share: float) -> Severity:
    """How bad a share is."""
    if limits.fail is not None and share > limits.fail:
        return "fail"
    return "warn" if limits.warn is not None and share > limits.warn else "info"


def judged_alpha(config: CheckConfig, alpha: float, high: float) -> Severity:
    """How bad an agreement is; high: the upper end of its 95 % interval."""
    limits = config.low_agreement
    if limits.fail is not None and high < limits.fail:
        return "fail"
    return "warn" if limits.warn is not None and alpha < limits.warn else "info"


def worse(one: Severity, other: Severity) -> Severity:
    """The worse of two."""
    return min(one, other, key=_ORDER.index)


def sorted_by_severity(findings: list[Finding]) -> list[Finding]:
    """The worst first, and in the order of KINDS."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda finding: (_ORDER.index(finding.severity), kinds.index(finding.kind)))
