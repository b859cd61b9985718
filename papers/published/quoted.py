"""Quoted numbers: one row of ``*.csv`` in this folder is one number as its source states it, with its conditions."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ...foundation.errors import UserError
from ...records.schema import Name, Text

FOLDER = Path(__file__).parent
CERTAINTIES = ("stated", "approximate", "upper bound", "ambiguous")
PARAMETERS: Mapping[str, int] = {
    "llama-7b": 6_738_415_616,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "mistral-7b": 7_241_732_096,
}
"""Parameters of the papers' models."""

_DECIMAL = re.compile(r"\d+(\.\d+)?")


def _decimal(value: str) -> str:
    if not _DECIMAL.fullmatch(value):
        raise ValueError(f"'{value[:20]}' is not a plain decimal number such as 27 or 8.50")
    return value


def _source(value: str) -> str:
    if not re.fullmatch(r"arXiv:\d{4}\.\d{5}", value):
        raise ValueError(f"'{value[:30]}' names no source; write arXiv:2405.15877")
    return value


def _optional(value: Any) -> Any:
    return None if value == "" else value


class Quoted(BaseModel):
    """One number as its source states it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    paper: Name = Field(description="short name of the paper, as bench reproduce takes it")
    source: Annotated[str, AfterValidator(_source)] = Field(description="arXiv number of the paper")
    place: Name = Field(description="section, table or figure that has the number")
    item: Text = Field(description="figure or table of bench reproduce that it belongs to; empty if none")
    model: Name = Field(description="model, under our preset's name where there is one")
    task: Name = Field(description="what the model was compressed for")
    benchmark: Name = Field(description="benchmark under our name; an average over several has a name of its own")
    metric: Name = Field(description="what was measured")
    method: Name = Field(description="method under our name where we have it; none is the uncompressed model")
    size: Annotated[str, AfterValidator(_decimal)] = Field(description="size of the model as stated")
    size_as: Literal["ratio", "kept %", "removed %", "parameters (B)"] = Field(description="what `size` says")
    size_of: Literal["model", "matrices", "unclear"] = Field(
        description="whether the size counts the whole model or the compressed matrices alone"
    )
    value: Annotated[str, AfterValidator(_decimal)] = Field(description="the number with its digits as stated")
    unit: Literal["%", "perplexity"] = Field(description="unit of the number")
    certainty: Literal["stated", "approximate", "upper bound", "ambiguous"] = Field(
        description="how sure the source is of the number, or we of its meaning"
    )
    evidence: Literal["paper", "abstract", "authors' repository", "second hand"] = Field(
        description="where the number was read"
    )
    n: Annotated[int | None, Field(ge=1), BeforeValidator(_optional)] = Field(
        description="problems behind it; empty where unknown"
    )
    context: Annotated[int | None, Field(ge=2), BeforeValidator(_optional)] = Field(
        description="window of a perplexity in tokens; empty where unknown or not one"
    )
    shots: Annotated[int | None, Field(ge=0), BeforeValidator(_optional)] = Field(
        description="examples in the prompt; empty where unknown"
    )
    grader: Text = Field(description="what decided whether an answer is right; empty where unknown or none")
    calibration: Text = Field(description="data that the compression looked at; empty where unknown")
    training: Literal["before and after", "after", "none", "unclear"] = Field(
        description="whether the model was trained before and after compression"
    )
    note: Text = Field(description="what a reader must know besides")

    @property
    def number(self) -> float:
        """The value in our metrics' unit: shares in 0..1, perplexities as they are."""
        return float(self.value) / (100 if self.unit == "%" else 1)

    @property
    def slack(self) -> float:
        """How far the true number may be from the printed one, in our metrics' unit.

        Half a unit of the last printed digit; a whole one where the source says that it is approximate.
        """
        decimals = len(self.value.partition(".")[2])
        step = 10.0**-decimals / (100 if self.unit == "%" else 1)
        return step if self.certainty == "approximate" else step / 2

    @property
    def ratio(self) -> float:
        """Original over compressed parameters; infinite where nothing is left."""
        size = float(self.size)
        if size == (100 if self.size_as == "removed %" else 0):
            return math.inf
        if self.size_as == "ratio":
            return size
        if self.size_as == "parameters (B)":
            return PARAMETERS[self.model] / 1e9 / size
        return 100 / (size if self.size_as == "kept %" else 100 - size)

    @property
    def shown(self) -> str:
        """The value as a table shows it: with its unit, ``≈`` and ``<`` where the source has them."""
        mark = {"approximate": "≈", "upper bound": "<"}.get(self.certainty, "")
        return f"{mark}{self.value}{' %' if self.unit == '%' else ''}"

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.unit == "%" and float(self.value) > 100:
            raise ValueError(f"{self.value} % is more than everything")
        if self.unit == "perplexity" and float(self.value) < 1:
            raise ValueError(f"a perplexity of {self.value} does not exist; it is 1 or more")
        if (self.unit == "perplexity") != (self.metric == "perplexity"):
            raise ValueError(f"the unit {self.unit} does not go with the metric {self.metric}")
        if self.size_as == "parameters (B)" and self.model not in PARAMETERS:
            raise ValueError(f"the size of {self.model} is not known here; add it to PARAMETERS")
        if not (0.999 <= self.ratio < math.inf and math.isfinite(self.number)):
            raise ValueError(f"the size {self.size} ({self.size_as}) or the value {self.value} is no model's")
        if (self.method == "none") != (abs(self.ratio - 1) < 1e-9):
            raise ValueError(f"the method {self.method} does not go with the ratio {self.ratio:g}")
        return self


QUOTED_COLUMNS = tuple(Quoted.model_fields)
_KEY = ("source", "item", "model", "benchmark", "metric", "method", "size", "size_as", "context", "training", "place")


def quoted_files() -> list[Path]:
    """Return the files of quoted numbers, in alphabetical order."""
    return sorted(FOLDER.glob("*.csv"))


def read_quoted(path: Path) -> list[Quoted]:
    """Read and validate one file of quoted numbers.

    Raises:
        UserError: it cannot be read, or a row is not valid; the sentence names the file, the line and the column.
    """
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}); see docs/published.md for its columns") from None
    if not lines or tuple(lines[0]) != QUOTED_COLUMNS:
        raise UserError(f"{path} has not the columns of quoted numbers: {', '.join(QUOTED_COLUMNS)}")
    rows: list[Quoted] = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(QUOTED_COLUMNS):
            raise UserError(f"{path}: line {number} has {len(line)} of {len(QUOTED_COLUMNS)} cells; quote commas")
        try:
            rows.append(Quoted.model_validate(dict(zip(QUOTED_COLUMNS, line, strict=True))))
        except ValidationError as error:
            raise UserError(f"{path}: line {number} is not valid: {_first(error)}") from None
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows, start=2):
        key = tuple(getattr(row, column) for column in _KEY)
        if key in seen:
            raise UserError(f"{path}: lines {seen[key]} and {number} quote the same number; leave one of them out")
        seen[key] = number
    return rows


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    column = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{column}: {message}" if column else message


@lru_cache
def all_quoted() -> tuple[Quoted, ...]:
    """Return every quoted number that ships with the package."""
    return tuple(row for path in quoted_files() for row in read_quoted(path))


def quoted_for(paper: str, items: Iterable[str]) -> list[Quoted]:
    """Return the numbers that belong to items (figures or tables) of a paper."""
    item_names = set(items)
    return [row for row in all_quoted() if row.paper == paper and row.item in item_names]
