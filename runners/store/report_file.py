"""What a method reported of one ratio, beside the model that it made: ``report.json`` and ``bases.safetensors``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from safetensors.torch import load_file, save_file

from ...foundation.errors import UserError
from ...foundation.files import read_json, write_json
from ...methods.base import CompressionReport

FILE = "report.json"
BASES_FILE = "bases.safetensors"
"""Tensors of a report, where the method has some: which bases survived."""


def write_report(report: CompressionReport, folder: Path) -> None:
    """Write a report into the folder of its ratio."""
    write_json(folder / FILE, report.summary())
    if report.tensors:
        save_file(report.tensors, folder / BASES_FILE)


def read_report(folder: Path, tensors: bool = False) -> CompressionReport:
    """Return the report in the folder of a ratio.

    Args:
        folder: ``KEY/ratio-R`` of a compress stage.
        tensors: read its tensors too.

    Raises:
        UserError: there is none, or it is damaged.
    """
    known = {field.name for field in fields(CompressionReport)}
    try:
        plain = read_json(folder / FILE)
        report = CompressionReport(**{name: value for name, value in plain.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / FILE} is no report of a compression ({error}); run the sweep again") from error
    if tensors and (file := folder / BASES_FILE).exists():
        report.tensors.update(load_file(file))
    return report
