"""Models of what people write, in which a number is no truth value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

_WRONG = PydanticCustomError(
    "truth_value", "this is a number, and true, false and what YAML reads as these (yes, no, on, off) are none"
)


class StrictNumbers(BaseModel):
    """Refuses true and false where a number is asked for: YAML reads ``yes`` as true, which pydantic takes for 1."""

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_truth_values(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        model = handler(values)
        given = values if isinstance(values, Mapping) else {}
        wrong = [
            InitErrorDetails(type=_WRONG, loc=(name,), input=value)
            for name, value in given.items()
            if name in cls.model_fields and _counts_truth(value, getattr(model, name))
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return model


def _counts_truth(value: Any, validated: Any) -> bool:
    """Whether a truth value, or one inside a list, became a number."""
    if isinstance(value, (list, tuple)) and isinstance(validated, (list, tuple)) and len(value) == len(validated):
        return any(map(_counts_truth, value, validated))
    return isinstance(value, bool) and isinstance(validated, (int, float)) and not isinstance(validated, bool)
