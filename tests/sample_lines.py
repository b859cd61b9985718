"""Whether lines of samples have the fields and types that are declared."""

from typing import get_type_hints

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from lowrank_bench.evals.samples import Sample, Window


def _checked(declared):
    # On Python 3.11 pydantic takes a TypedDict of typing_extensions alone.
    fields = get_type_hints(declared, include_extras=True)
    return TypeAdapter(TypedDict(declared.__name__, fields, total=declared.__total__))


SAMPLE, WINDOW = _checked(Sample), _checked(Window)


def check_samples(lines):
    """Raise where a line lacks a required field, or a field has another type than declared."""
    assert lines
    for line in lines:
        (WINDOW if "nll" in line else SAMPLE).validate_python(line, strict=True)
