"""Models of what people write, in which a number is no truth value."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationInfo, ValidatorFunctionWrapHandler, field_validator


class StrictNumbers(BaseModel):
    """Refuses true and false where a number is asked for: YAML reads ``yes`` as true, which pydantic takes for 1."""

    @field_validator("*", mode="wrap", check_fields=False)
    @classmethod
    def _refuse_truth_values(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        validated = handler(value)
        if _counts_truth(value, validated):
            raise ValueError(
                f"{info.field_name} cannot be {str(value).lower()}; it is a number, and YAML reads yes, no, on and off "
                "as true and false"
            )
        return validated


def _counts_truth(value: Any, validated: Any) -> bool:
    """Whether a truth value, or one inside a list, became a number."""
    if isinstance(value, (list, tuple)) and isinstance(validated, (list, tuple)) and len(value) == len(validated):
        return any(map(_counts_truth, value, validated))
    return isinstance(value, bool) and isinstance(validated, (int, float)) and not isinstance(validated, bool)
