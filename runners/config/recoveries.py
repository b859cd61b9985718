"""The recoveries of a sweep and their short form, ``name:option=value,option=value``."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from ...foundation.strict_numbers import StrictNumbers
from .methods import parse_method


class RecoverySpec(StrictNumbers):
    """One recovery of a sweep: its name, and options that differ from its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        spec = parse_method(value, "recovery")
        if spec.label not in ("", value.strip()):
            raise ValueError(f"a recovery has no label; in place of '{value}' write {value.partition('=')[2]}")
        return spec.model_dump(include={"name", "options"})

    @property
    def shown(self) -> str:
        """As tables name it: ``lora``, ``lora(r=4)``."""
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


FULL = RecoverySpec(name="full")
