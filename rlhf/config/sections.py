"""What all sections of a recipe share: strict, frozen values, and which of them affect a result."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _off(value: object) -> object:
    return "off" if value is False else value


BARE_OFF = BeforeValidator(_off)  # YAML reads a bare off as false


class AffectsNothing:
    """Marks a field that cannot change a stage's result."""


class Section(BaseModel):
    """Base of all sections: unknown keys, loose types, nan and infinity are errors; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

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
