"""A check as JUnit XML, one test case a cell, as Jenkins, GitLab and GitHub's actions read it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

from ..tables import clean
from .compare import Check, Comparison


def junit_xml(check: Check, name: str) -> str:
    """Return the check as JUnit XML: one suite a measure, one test case a cell; equal checks give equal text.

    A cell with a fault is a failure with its sentences; a cell that was not compared (new, or without a recovery) is
    skipped; what else there is to say is its output. Characters that XML cannot hold are replaced.

    Args:
        check: what was compared.
        name: of the whole, such as the run's folder.
    """
    from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

    suites = JUnitXml(clean(name))
    for measure, cells in _by_measure(check.cells).items():
        suite = TestSuite(clean(measure))
        for cell in cells:
            case = TestCase(clean(cell.name.row), classname=clean(measure.replace(".", "_")), time=0)
            if cell.faults:
                texts = [clean(fault) for fault in cell.faults]
                failure = Failure(texts[0], type_=cell.verdict)
                failure.text = "\n".join(texts)
                case.result = [failure]
            elif cell.verdict in ("new", "undefined"):
                case.result = [Skipped(clean(cell.notes[0]))]
            case.system_out = "\n".join([_numbers(cell), *map(clean, cell.notes)])
            suite.add_testcase(case)
        suites.add_testsuite(suite)
    suites.update_statistics()
    buffer = io.BytesIO()
    suites.write(buffer, pretty=True)
    return buffer.getvalue().decode()


def _by_measure(cells: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for cell in cells:
        groups.setdefault(cell.name.measure, []).append(cell)
    return groups


def _numbers(cell: Comparison) -> str:
    if math.isnan(cell.before):
        return cell.verdict
    return (
        f"recovery {100 * cell.before:.2f} % in the baseline, {100 * cell.after:.2f} % now: {100 * cell.change:+.2f} "
        f"points, {cell.sigmas:+.2f} standard errors of {100 * cell.error:.2f} points; alarm from {cell.threshold:.2f}"
    )
