"""The methods of a sweep and their short form, ``label=name:option=value,option=value``."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ...foundation.errors import UserError
from ...foundation.plain import parse_yaml
from ...foundation.strict_numbers import StrictNumbers
from .sentences import sentence

_NOT_A_COMMA = re.compile(r"(\([^()]*\)|[^()])*?(\s*[:;|&/]|\s)\s*-*\w+\s*=")
"""A value behind which another option follows, separated by something else than a comma."""
_PLURALS = {"method": "methods", "recovery": "recoveries"}
_NAME = re.compile(r"\s*(?P<name>[\w.+-]*\w)(?P<rest>.*)", re.DOTALL)
_SEPARATOR = re.compile(r"[\s:;,|&/?()\[\]{}]")
_PIECE = re.compile(r"(?:[^\s:;,|&/?()\[\]{}]|\([^()]*\))+")
_LABELLED = re.compile(r"\s*(?P<label>[^=:,]*?)\s*=\s*(?P<method>[A-Za-z][\w.+-]*)\s*")
"""What is before the first colon of a method with a label of its own."""
_LABEL = re.compile(r"\w[\w.+-]{0,59}")
_BARE_METHOD = re.compile(r"(?!(true|false|null)$)[a-z][\w-]*")


def check_recordable(kind: str, value: str) -> str:
    """Return a text that can be in a record; see `records.schema.recordable`."""
    from ...records.schema import recordable  # its models are built then, which `bench --help` does not wait for

    return recordable(kind, value)


class MethodSpec(StrictNumbers):
    """One method of a sweep: its name, its options, and the label that tables show.

    The short form ``bs:prunings=2,new_vectors=top`` names options after a colon; its label is the text itself, or what
    comes before an equals sign: ``quick=bs:prunings=2``. A label is no part of any stage's key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

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
        return (
            check_recordable({"name": "method", "label": "label"}[info.field_name or "name"], value) if value else value
        )

    @model_validator(mode="after")
    def _own_label(self) -> MethodSpec:
        if self.label and self.name != "none" and self.label != self.name:
            _check_label(self.label)
        return self

    @property
    def shown(self) -> str:
        """The label, or the name where there is none."""
        return self.label or self.name


def parse_method(text: str, kind: str = "method") -> MethodSpec:
    """Read ``name`` or ``name:option=value,option=value``; values are YAML scalars.

    Args:
        text: the short form.
        kind: what messages call it.

    Raises:
        UserError: the text has another form, or its label could not stand in a record.
    """
    name, colon, rest = text.strip().partition(":")
    own, name = _split_label(name)
    if not name or _SEPARATOR.search(name) or "=" in name:
        raise UserError(_separated(text, kind))
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or _SEPARATOR.search(key.strip()) or _NOT_A_COMMA.match(value):
            raise UserError(_separated(text, kind))
        if not value.strip():
            raise UserError(_without_value(text, key.strip(), text.strip() if text.strip()[-1] == "=" else "", kind))
        if key.strip() in options:
            raise UserError(f"the option '{key.strip()}' is given twice in '{text}'; name each option once")
        options[key.strip()] = parse_yaml(value, f"the value of {key.strip()} in '{text}'")
    try:
        return MethodSpec(name=name, label=own or (text.strip() if colon else ""), options=options)
    except ValidationError as error:
        raise UserError(sentence(error, MethodSpec)) from None


def _split_label(head: str) -> tuple[str, str]:
    """Return the label of a method, empty where it has none of its own, and its name.

    Args:
        head: what is before the colon.
    """
    match = _LABELLED.fullmatch(head)
    # `svd=embeddings` is a method with an option behind the wrong sign, and not a label.
    if match is None or (_is_method(match["label"]) and not _is_method(match["method"])):
        return "", head
    label = match["label"]
    if not _LABEL.fullmatch(label):
        raise UserError(
            f"the label '{label}' of '{head}' is not usable; a label has 1 to 60 letters, digits, '-', '_', '.' and "
            "'+', such as quick=svd:embeddings=true"
        )
    return label, match["method"]


def _check_label(label: str) -> None:
    """Refuse a label that tables have for something else.

    Raises:
        ValueError: it is.
    """
    from ...records.schema import STAGES  # see `check_recordable`

    if _is_method(label):
        raise ValueError(f"the label '{label}' is the name of another method; choose another, such as my-{label}")
    if label in (*STAGES, "none", "uncompressed"):
        raise ValueError(f"the label '{label}' is what tables call another model; choose another, such as my-{label}")


def _is_method(text: str) -> bool:
    """Whether a text is the name of a method or of a control."""
    from ...methods.registry import methods
    from ...models.quantised.scheme import CONTROLS

    return text in CONTROLS or text in methods.names()


def _options_of(method: str) -> Collection[str]:
    """Return the names of the options of a method or control; nothing of a name that is neither."""
    from ...methods.registry import methods  # asked about few texts: `bench --help` imports no torch
    from ...models.quantised.scheme import CONTROLS, control_options

    if method in CONTROLS:
        return control_options(method)
    return methods.get(method).model_fields if method in methods.names() else ()


def _separated(text: str, kind: str = "method") -> str:
    """Say how methods and options are separated, and what to write in place of a text that has another form."""
    match = _NAME.match(text)
    rest = re.sub(r"\s*=+\s*", "=", match["rest"]).strip() if match else ""
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1]
    pieces = [piece for found_piece in _PIECE.findall(rest) if (piece := found_piece.lstrip("-"))]
    if not match or not pieces or any(piece.startswith("=") for piece in pieces):
        return f"'{text}' is no {kind}; write name, or name:option=value,option=value"
    if ":" not in text and all(map(_BARE_METHOD.fullmatch, pieces)):
        return (
            f"{_PLURALS[kind]} are separated by commas; in place of '{text}' write {','.join([match['name'], *pieces])}"
        )
    options: list[str] = []
    for piece in pieces:
        if "=" not in piece and options and "=" not in options[-1]:
            options[-1] += f"={piece}"
        else:
            options.append(piece)
    corrected = f"{match['name']}:{','.join(options)}"
    if missing := [option for option in options if "=" not in option]:
        return _without_value(text, missing[0], f"{corrected}=" if missing == options[-1:] else "", kind)
    return (
        f"options follow the {kind}'s name behind a colon and are separated by commas; in place of "
        f"'{text}' write {corrected}"
    )


def _is_option(text: str, method: str) -> bool:
    """Whether a text between commas is no method but an option of the one before it."""
    return text.isidentifier() and not _is_method(text) and text in _options_of(method.partition(":")[0])


def _is_labelled(text: str, before: str) -> bool:
    """Whether a text between commas without a colon is a method with a label, and no option of the one before it."""
    label, _, name = (part.strip() for part in text.partition("="))
    if not _is_method(name):
        return False
    return label not in _options_of(_split_label(before.partition(":")[0])[1])


def _without_value(text: str, option: str, corrected: str, kind: str = "method") -> str:
    name = _NAME.match(text)
    corrected = corrected or (f"{name['name']}:{option}=" if name else f"{option}=")
    if corrected.count(":") == 0:
        corrected = corrected.replace(",", ":", 1)
    return (
        f"the option '{option}' in '{text}' has no value; options follow the {kind}'s name behind a colon and are "
        f"separated by commas: write {corrected}VALUE (null for none)"
    )


def split_methods(text: str) -> list[str]:
    """Split ``svd,bs:prunings=2,seed=1,quick=fwsvd`` at the commas that begin a new method."""
    parts: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if "=" in part and ":" not in part and parts and not _is_labelled(part, parts[-1]):
            parts[-1] += f",{part}"
        elif parts and _is_option(part, parts[-1]):
            raise UserError(_without_value(f"{parts[-1]},{part}", part, f"{parts[-1]},{part}="))
        else:
            parts.append(part)
    return parts
