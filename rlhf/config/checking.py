"""What the check of comparisons finds bearable."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.sections import BARE_OFF, Address, Fraction, Section


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


class ClassifierConfig(Section):
    """A text classifier of one's own, which tells offensive responses."""

    path: Annotated[str, Address()]  # the directory of a model with safetensors; relative ones start at data.directory
    labels: list[str] = []  # its labels of offensive texts; may be left out where it has but one
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5  # probability of them from which on a response is flagged


class CheckConfig(Section):
    """The check of comparisons: `rlhf data check`, and before every reward training."""

    # A verdict of fail ends reward training (fail), is told (warn), is not sought (off).
    gate: Annotated[Literal["fail", "warn", "off"], BARE_OFF] = "fail"
    # Responses that hold one of a file's words, one a line, are offensive; relative paths start at data.directory.
    words: Annotated[str | None, Address()] = None
    classifier: ClassifierConfig | None = None  # in the command and in the reward stage
    similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.8  # Jaccard, from which on texts are nearly the same

    # A kind's limits are given whole: without fail it never fails.
    malformed: LimitsConfig = LimitsConfig(warn=0.0, fail=0.1)  # of all records; warn 0, fail 0.1
    empty: LimitsConfig = LimitsConfig(warn=0.0, fail=0.1)  # warn 0, fail 0.1
    identical: LimitsConfig = LimitsConfig(warn=0.0, fail=0.1)  # warn 0, fail 0.1
    duplicate: LimitsConfig = LimitsConfig(warn=0.001, fail=0.2)  # warn 0.001, fail 0.2
    near_duplicate: LimitsConfig = LimitsConfig(warn=0.05)  # of distinct pairs; warn 0.05
    contradiction: LimitsConfig = LimitsConfig(warn=0.001, fail=0.05)  # of distinct pairs; warn 0.001, fail 0.05
    # Of held-out votes, those with a prompt of training, case and spaces aside; warn 0.001, fail 0.1.
    leakage: LimitsConfig = LimitsConfig(warn=0.001, fail=0.1)
    near_leakage: LimitsConfig = LimitsConfig(warn=0.05)  # of held-out votes; warn 0.05
    length_bias: LimitsConfig = LimitsConfig(warn=0.6)  # of votes, those that the longer wins, with p < 0.01; warn 0.6
    # Of votes, those that one position wins, with p < 0.01; warn 0.6.
    position_bias: LimitsConfig = LimitsConfig(warn=0.6)
    too_long: LimitsConfig = LimitsConfig(warn=0.0)  # warn 0
    low_agreement: AgreementLimitsConfig = AgreementLimitsConfig()
    template: LimitsConfig = LimitsConfig(warn=0.005)  # warn 0.005
    tie: LimitsConfig = LimitsConfig()
    truncated: LimitsConfig = LimitsConfig()
    language: LimitsConfig = LimitsConfig()
    offensive: LimitsConfig = LimitsConfig()  # of votes, those with a response that words or classifier flag
