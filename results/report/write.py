"""Writes a run's report beside its results."""

from __future__ import annotations

import logging
from pathlib import Path

from ...foundation.files import write_atomic
from .gather import gather
from .markdown import report_markdown
from .page import report_page

NAME = "report"

_log = logging.getLogger(__name__)


def write_report(run: Path, out: Path | None = None, data: Path | None = None) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md``.

    Args:
        run, data: as in `gather.gather`.
        out: folder for the two files; None takes the run's.

    Returns:
        The paths of the page and of the Markdown.

    Raises:
        UserError: there are no valid records; nothing is written then.
    """
    report = gather(run, data)
    for sentence in report.missing.get("stages", ()):
        _log.warning("%s", sentence)
    folder = out or (run if run.is_dir() else run.parent)
    texts = {f"{NAME}.html": report_page(report), f"{NAME}.md": report_markdown(report)}
    for name, text in texts.items():
        write_atomic(folder / name, text)
    html, markdown = (folder / name for name in texts)
    return html, markdown
