"""What the sections of a configuration are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
SizeHW = tuple[PositiveInt, PositiveInt]
Range = tuple[PositiveFloat, PositiveFloat]
RGB = tuple[float, float, float]


STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""What all sections have in common."""
