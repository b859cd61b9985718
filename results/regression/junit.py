"""A check as JUnit XML, one test case a cell, as Jenkins, GitLab and GitHub's actions read it.

The format has no owner; Jenkins' schema (xunit-plugin, junit-10.xsd) is the strictest that is published. junitparser
writes an attribute that it refuses, so the few elements are written here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from ..tables.escape import clean
from .compare import Check, Comparison

_SKIPPED = ("new", "undefined")


def junit_xml(check: Check, name: str) -> str:
    """Return the check as JUnit XML: one suite a measure, one test case a cell; equal checks give equal text.

    A cell with a fault is a failure with its reasons; a cell that was not compared (new, or without a recovery) is
    skipped; numbers and notes are its output. Characters that XML cannot hold are replaced.

    Args:
        check: what was compared.
        name: of the whole, such as the run's folder.
    """
    groups: dict[str, list[Comparison]] = {}
    for cell in check.cells:
        groups.setdefault(cell.name.measure, []).append(cell)
    root = ElementTree.Element("testsuites", {"name": clean(name), **_counts(check.cells)})
    for measure, cells in groups.items():
        skipped = sum(_skipped(cell) for cell in cells)
        counts = _counts(cells) | {"skipped": str(skipped)}
        suite = ElementTree.SubElement(root, "testsuite", {"name": clean(measure), **counts})
        for cell in cells:
            _add_case(suite, measure, cell)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True).decode() + "\n"


def _counts(cells: Sequence[Comparison]) -> dict[str, str]:
    failures = sum(bool(cell.faults) for cell in cells)
    return {"tests": str(len(cells)), "failures": str(failures), "errors": "0", "time": "0"}


def _skipped(cell: Comparison) -> bool:
    return cell.verdict in _SKIPPED and not cell.faults


def _add_case(suite: ElementTree.Element, measure: str, cell: Comparison) -> None:
    # Readers take dots in a class name for folders.
    names = {"classname": clean(measure.replace(".", "_")), "name": clean(cell.name.row), "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", names)
    if cell.faults:
        failure = {"message": clean(cell.faults[0]), "type": cell.verdict}
        ElementTree.SubElement(case, "failure", failure).text = "\n".join(map(clean, cell.faults))
    elif _skipped(cell):
        ElementTree.SubElement(case, "skipped", {"message": clean(cell.notes[0])})
    ElementTree.SubElement(case, "system-out").text = "\n".join([_numbers(cell), *map(clean, cell.notes)])


def _numbers(cell: Comparison) -> str:
    if math.isnan(cell.before) or math.isnan(cell.after):
        return cell.verdict
    return (
        f"recovery {100 * cell.before:.2f} % in the baseline, {100 * cell.after:.2f} % now: {100 * cell.change:+.2f} "
        f"points, {cell.sigmas:+.2f} standard errors of {100 * cell.error:.2f} points; alarm from {cell.threshold:.2f}"
    )
