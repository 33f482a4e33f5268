"""What the check of comparisons finds bearable."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.sections import Fraction, Section


class LimitsConfig(Section):
    """Shares of the votes from which on a finding is a warning, or a failure; null: never."""

    warn: Fraction | None = None  # above this share
    fail: Fraction | None = None  # above this share

    @model_validator(mode="after")
    def _warned_before_it_fails(self) -> LimitsConfig:
        if self.warn is not None and self.fail is not None and self.fail < self.warn:
            raise ValueError(f"fail={self.fail:g} is below warn={self.warn:g}; use fail={self.warn:g} or more")
        return self


class AgreementLimitsConfig(Section):
    """Krippendorff's alpha below which annotators agree too little; null: never."""

    warn: Annotated[float, Field(ge=-1, le=1)] | None = 0.1
    fail: Annotated[float, Field(ge=-1, le=1)] | None = 0.0  # the whole 95 % interval is below: less than by chance


class CheckConfig(Section):
    """The check of comparisons: `rlhf data check`, and before every reward training."""

    gate: Literal["fail", "warn", "off"] = "fail"  # a verdict of fail ends reward training, is told, is not sought
    similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.8  # Jaccard, from which on texts are nearly the same

    malformed: LimitsConfig = LimitsConfig(warn=0.0, fail=0.1)
    empty: LimitsConfig = LimitsConfig(warn=0.0, fail=0.1)
    identical: LimitsConfig = LimitsConfig(warn=0.0, fail=0.1)
    duplicate: LimitsConfig = LimitsConfig(warn=0.001, fail=0.2)
    near_duplicate: LimitsConfig = LimitsConfig(warn=0.05)
    contradiction: LimitsConfig = LimitsConfig(warn=0.001, fail=0.05)
    leakage: LimitsConfig = LimitsConfig(warn=0.001, fail=0.05)  # of held-out votes; equal but for case and spaces
    near_leakage: LimitsConfig = LimitsConfig(warn=0.05)  # of held-out votes; nearly the same
    length_bias: LimitsConfig = LimitsConfig(warn=0.6)  # of votes that the longer response wins, with p < 0.01
    position_bias: LimitsConfig = LimitsConfig(warn=0.6)  # that one position wins, with p < 0.01
    too_long: LimitsConfig = LimitsConfig(warn=0.0)
    low_agreement: AgreementLimitsConfig = AgreementLimitsConfig()
    template: LimitsConfig = LimitsConfig(warn=0.005)
    tie: LimitsConfig = LimitsConfig()
    truncated: LimitsConfig = LimitsConfig()
    language: LimitsConfig = LimitsConfig()
