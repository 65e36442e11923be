"""What the sections of a report share: they are frozen, know their numbers, and come from JSON and go back to it."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=0, lt=2**63)]
Total = Annotated[int, Field(ge=1, lt=2**63)]
"""A count that something is divided by."""
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""JSON has NaN, which stands for what is not known, as null, and infinities as the texts "inf" and "-inf"."""
Interval = tuple[Number, Number]
"""Both ends of a 95 % interval."""
StageName = Literal["dense", "cut", "repaired", "healed"]
STAGES: tuple[StageName, ...] = get_args(StageName)


class Section(BaseModel):
    """A part of a report; its fields are the keys of the JSON.

    A field that is not given keeps its default and is not written. Keys that this version does not know are kept and
    written again, so that a report that is measured anew loses nothing.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    def replace(self, **changes: Any) -> Self:
        """The same with other values."""
        return type(self)(**{**self.given(), **changes})

    def given(self) -> dict[str, Any]:
        """Values of the fields that are there, by name; sections in them stay what they are."""
        return {name: value for name, value in self if name in self.model_fields_set}

    def to_dict(self) -> dict[str, Any]:
        """JSON values all the way down."""
        return jsonable(self.model_dump(exclude_unset=True))


T = TypeVar("T")


class ByStage(Section, Generic[T]):
    """The same measurement of the dense parent, the bare cut, and what repair and training made of it."""

    dense: T | None = None
    cut: T | None = None
    repaired: T | None = None
    healed: T | None = None

    def of(self, stage: StageName) -> T:
        """Of one of the stages that the report has."""
        return getattr(self, stage)


def jsonable(value: Any) -> Any:
    """JSON types only; infinities become the text "inf", NaN null."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return int(value) if isinstance(value, np.integer) else value
