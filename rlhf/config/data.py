"""Sources of examples and what is held out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlhf.config.checking import CheckConfig
from rlhf.config.sections import Address, AffectsNothing, PositiveFloat, PositiveInt, Section

# Held by data.formats, each with an example in docs/data.md; auto: told by the fields of the first records.
PreferenceFormat = Literal["pandalm", "squality", "preference", "hh", "implicit-preference", "rating"]
PromptFormat = Literal["messages", "prompt-completion", "self-instruct", "instruction", "prompt"]
FormatName = Literal["auto", PreferenceFormat, PromptFormat]


class SourceConfig(Section):
    """One source of examples."""

    # toy, stories, on-policy, a file, a directory or org/name@COMMIT of the hub; the content is fingerprinted.
    path: Annotated[str, AffectsNothing, Address()]
    format: FormatName = "auto"
    weight: PositiveFloat | None = None  # share of the training examples; null: sources one behind the other, each once
    # Share of the training examples that are drawn from this source, beside all of those without replay: old examples
    # in continued training. null: all of it.
    replay: Annotated[float, Field(gt=0, lt=1)] | None = None
    bad_records: Literal["fail", "drop"] = "fail"  # drop: leave them out, count them and name the first
    prompt: str | None = None  # what rated texts without a prompt of their own answer
    count: PositiveInt | None = None  # the first examples of a source, or how many to draw where it makes them
    held_out: PositiveInt | None = None  # toy: how many of the held-out part; null: its own default
    # On-policy: package.module:function whose score decides the simulated votes.
    labeller: Annotated[str | None, Address("RLHF_REWARD_TOKEN")] = None
    sharpness: PositiveFloat = 10.0  # on-policy: P(win) = sigmoid(sharpness * score difference)

    @model_validator(mode="after")
    def _labeller_where_votes_are_made(self) -> SourceConfig:
        if (self.path == "on-policy") != (self.labeller is not None):
            raise ValueError(
                f"path={self.path} with labeller={self.labeller}: path=on-policy needs a labeller, for example "
                "labeller=data.lexicons:vader, and no other source takes one"
            )
        if self.held_out is not None and self.path != "toy":
            raise ValueError(f"held_out={self.held_out} with path={self.path}: other sources hold out by test_fraction")
        return self

    def fingerprint_fields(self) -> dict[str, Any]:
        """See `Section`; a source without replay has the fingerprint that it had before there was one."""
        fields = super().fingerprint_fields()
        return fields if self.replay is not None else {name: fields[name] for name in fields if name != "replay"}

    @model_validator(mode="after")
    def _weight_or_replay(self) -> SourceConfig:
        if self.weight is not None and self.replay is not None:
            raise ValueError(
                f"weight={self.weight:g} and replay={self.replay:g} cannot both say how much of it is used; remove one"
            )
        return self

    @model_validator(mode="after")
    def _records_where_they_are_read(self) -> SourceConfig:
        for name in ("format", "bad_records", "prompt") if self.path in ("toy", "stories", "on-policy") else ():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={value} with path={self.path}: it reads no records; remove {name}")
        return self


class DataConfig(Section):
    """Demonstrations, comparisons and prompts, and the share of prompts held out of all training."""

    # Relative paths start here; null: the working directory.
    directory: Annotated[str | None, AffectsNothing, Address()] = None
    demonstrations: Annotated[list[SourceConfig], Field(min_length=1)] = [SourceConfig(path="toy")]
    comparisons: Annotated[list[SourceConfig], Field(min_length=1)] = [SourceConfig(path="toy")]
    prompts: Annotated[list[SourceConfig], Field(min_length=1)] = [SourceConfig(path="toy")]
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    too_long: Literal["fail", "drop"] = "fail"  # examples of more tokens than max_length; drop: leave out and count
    check: Annotated[CheckConfig, AffectsNothing] = CheckConfig()  # of comparisons, before a reward model is trained

    @model_validator(mode="after")
    def _replayed_beside_others(self) -> DataConfig:
        for kind in ("demonstrations", "comparisons", "prompts"):
            shares = [source.replay for source in getattr(self, kind) if source.replay is not None]
            if shares and len(shares) == len(getattr(self, kind)):
                raise ValueError(f"{kind}: replay of every source; leave it out of those that are new")
            if sum(shares) >= 1:
                raise ValueError(f"{kind}: the shares of replay sum to {sum(shares):g}; leave room for the others")
        return self
