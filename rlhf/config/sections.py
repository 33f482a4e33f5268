"""What all sections of a recipe share: strict, frozen values, and which of them affect a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rlhf.references import secret_in

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _off(value: object) -> object:
    return "off" if value is False else value


BARE_OFF = BeforeValidator(_off)  # YAML reads a bare off as false


class AffectsNothing:
    """Marks a field that cannot change a stage's result."""


@dataclass(frozen=True)
class Address:
    """Marks a field of text that may be an address: one that holds a secret is refused."""

    variable: str = "HF_TOKEN"  # of the environment, which is to hold it instead


class Section(BaseModel):
    """Base of all sections: unknown keys, loose types, nan and infinity are errors; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _addresses_hold_no_secret(self) -> Section:
        """Whether a stage that runs reads it or not: the whole recipe is written into the run's directory."""
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            for mark in info.metadata if isinstance(value, str) else ():
                if isinstance(mark, Address) and (problem := secret_in(value, mark.variable)):
                    raise ValueError(f"{name}={problem}")
        return self

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields that affect the result, as plain values."""
        fields = {}
        for name, info in type(self).model_fields.items():
            if any(mark is AffectsNothing for mark in info.metadata):
                continue
            value = getattr(self, name)
            if isinstance(value, list):
                value = [v.fingerprint_fields() if isinstance(v, Section) else v for v in value]
            fields[name] = value.fingerprint_fields() if isinstance(value, Section) else value
        return fields
