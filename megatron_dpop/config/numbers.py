"""Numbers that a key of a config may have, with their bounds."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _not_a_truth_value(value: Any) -> Any:
    """`true` is no number, though Python takes it for 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


Whole = Annotated[int, BeforeValidator(_not_a_truth_value)]
Real = Annotated[float, BeforeValidator(_not_a_truth_value), Field(allow_inf_nan=False)]

Natural = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Whole, Field(ge=1)]
NonNegativeReal = Annotated[Real, Field(ge=0)]
PositiveReal = Annotated[Real, Field(gt=0)]
Share = Annotated[Real, Field(ge=0, le=1)]
BelowOne = Annotated[Real, Field(ge=0, lt=1)]
PositiveShare = Annotated[Real, Field(gt=0, le=1)]
