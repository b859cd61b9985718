"""The methods of a sweep and their short form, ``name:option=value,option=value``."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ...foundation.errors import UserError
from ...foundation.plain import parse_yaml
from ...records.schema import recordable
from .sentences import sentence

_OTHER_SEPARATOR = re.compile(r"(?P<value>[^()]*?)\s*[:;|&\s]\s*(?P<key>\w+)\s*=")


class MethodSpec(BaseModel):
    """One method of a sweep: its name, its options, and the label that tables show.

    The short form ``bs:prunings=2,new_vectors=top`` names options after a colon; its label is the text itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return parse_method(value).model_dump() if isinstance(value, str) else value

    @field_validator("name", "label")
    @classmethod
    def _recordable(cls, value: str, info: ValidationInfo) -> str:
        return recordable({"name": "method", "label": "label"}[info.field_name or "name"], value) if value else value

    @property
    def shown(self) -> str:
        """The label, or the name where there is none."""
        return self.label or self.name


def parse_method(text: str) -> MethodSpec:
    """Read ``name`` or ``name:option=value,option=value``; values are YAML scalars.

    Raises:
        UserError: the text has another form, or its label could not stand in a record.
    """
    name, colon, rest = text.strip().partition(":")
    if "=" in name and not colon:
        raise UserError(
            f"'{text}' is no method; options follow a colon and are separated by commas: name:option=value,option=value"
        )
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UserError(f"'{text}' is no method; write name:option=value,option=value, such as bs:prunings=10")
        if other := _OTHER_SEPARATOR.match(value):
            first = f"{name}:{key.strip()}={other['value']}"
            raise UserError(
                f"the options of '{text}' are not separated by commas; write {first},{other['key']}=…, or with several "
                "methods name:option=value,option=value,name:option=value"
            )
        options[key.strip()] = parse_yaml(value, f"the value of {key.strip()} in '{text}'")
    try:
        return MethodSpec(name=name, label=text.strip() if colon else "", options=options)
    except ValidationError as error:
        raise UserError(sentence(error, MethodSpec)) from None


def split_methods(text: str) -> list[str]:
    """Split ``svd,bs:prunings=2,seed=1,fwsvd`` at the commas that begin a new method."""
    parts: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if "=" in part and ":" not in part and parts:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts
