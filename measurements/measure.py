"""Measure what the README and docs/measurements.md show, keep the records, and fill the pages' tables from them.

    python measurements/measure.py --data DATA            # all but the heavy ones; complete stages are not run again
    python measurements/measure.py --only demo,overhead
    python measurements/measure.py --real --data DATA     # the heavy ones too
    python measurements/measure.py --pages                # only fill the pages from the records in docs/measured

`measurements.yaml` says what is measured. Sweeps are ordinary ones: ``runs/NAME`` has their results, and
``docs/measured`` a copy of the headline records. Nothing in ``docs`` is written before all that was asked for has been
measured, so that the commit in the records is the one that is checked out.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from lowrank_bench.foundation.errors import UserError, unknown
from lowrank_bench.foundation.files import write_atomic
from lowrank_bench.measurements.pages import MEASURED, PAGES, ROOT, Measurement, read_list, update_page
from lowrank_bench.records.files import csv_text, read_records, to_records
from lowrank_bench.results.report.budgets import budget_findings
from lowrank_bench.results.report.gather import gather
from lowrank_bench.results.tables.pivot import pivot
from lowrank_bench.runners.provenance import git_commit, processor

RUNS = Path("runs")


def choose(known: Mapping[str, Measurement], only: str, heavy: bool, data: Path | None) -> list[Measurement]:
    """Return what is to be measured; what is left out is named with its reason.

    Raises:
        UserError: a name is unknown, or was asked for by name and cannot be measured.
    """
    names = [name for name in only.split(",") if name]
    for name in names:
        if name not in known:
            raise unknown("measurement", name, known)
        if known[name].needs_data and data is None:
            raise UserError(f"{name} reads the local datasets; name their folder: --data DATA (docs/data.md)")
    chosen = []
    for entry in known.values():
        if names:
            reason = "" if entry.name in names else "not asked for"
        elif entry.heavy and not heavy:
            reason = "it takes long; add --real (make measurements REAL=1)"
        else:
            reason = "no --data" if entry.needs_data and data is None else ""
        if not reason:
            chosen.append(entry)
        elif not names:
            print(f"{entry.name}: left out, {reason}", flush=True)
    return chosen


def run_sweep(entry: Measurement, data: Path | None, runs: Path = RUNS) -> dict[str, str | bytes]:
    """Run a sweep, or what is missing of it, and return the files that keep its result."""
    words = shlex.split(entry.command)[1:]
    words = [str(data) + word.removeprefix("DATA") if word.split("/")[0] == "DATA" else word for word in words]
    command = [sys.executable, "-m", "lowrank_bench.cli", *words, "--out", str(runs), "--name", entry.name]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise UserError(f"{entry.name} was not measured, for the reason above; the same command again goes on")
    return sweep_files(entry, ROOT / runs / entry.name)


def sweep_files(entry: Measurement, run: Path) -> dict[str, str | bytes]:
    """Return the files that keep a finished sweep's result: its headline records, and the command.

    Of several budgets also what the report says about the order of the methods, and the figure over tokens.
    """
    records = read_records(run)
    text = csv_text(to_records(records[records.headline]))
    facts: dict[str, object] = {"command": entry.command}
    files: dict[str, str | bytes] = {f"{entry.name}.csv": text}
    if records[records.steps_budget > 0].steps_budget.nunique() > 1:
        facts["findings"] = [line for _, lines in budget_findings(pivot(records), gather(run).orders) for line in lines]
        files[f"{entry.name}.png"] = min(run.glob("*-by-tokens.png")).read_bytes()
    return files | {f"{entry.name}.json": as_json(facts)}


def run_script(entry: Measurement) -> dict[str, str | bytes]:
    """Run a script and return the file that keeps what it printed.

    A script's exit code 1 means that its target was missed; what it measured counts all the same.
    """
    words = shlex.split(entry.command)
    facts = {
        "command": entry.command,
        "commit": git_commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1) or "Traceback (most recent call last)" in done.stderr or not done.stdout:
        raise UserError(f"{entry.name} was not measured; {entry.command} ended with:\n{done.stderr[-2000:]}")
    print(done.stdout, flush=True)
    return {f"{entry.name}.json": as_json({**facts, "output": done.stdout})}


def as_json(facts: Mapping[str, object]) -> str:
    """Return facts as indented JSON."""
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def fill_pages(known: Mapping[str, Measurement]) -> None:
    """Write the pages whose tables are not those of the records."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = update_page(before, known)
        if after != before:
            write_atomic(page, after)
        print(f"{page.relative_to(ROOT)}: {'written' if after != before else 'unchanged'}")


def main() -> int:
    """Measure, keep the records, fill the pages."""
    parser = argparse.ArgumentParser(description="Measure what the documentation shows.")
    parser.add_argument("--only", default="", help="names of measurements.yaml, with commas")
    parser.add_argument("--real", action="store_true", help="the heavy ones too")
    parser.add_argument("--data", type=Path, help="folder with the local datasets")
    parser.add_argument("--pages", action="store_true", help="measure nothing, only fill the pages")
    options = parser.parse_args()
    data = options.data.resolve() if options.data else None
    try:
        known = read_list()
        files: dict[str, str | bytes] = {}
        for entry in [] if options.pages else choose(known, options.only, options.real, data):
            print(f"{entry.name}: {entry.command}", flush=True)
            files |= run_sweep(entry, data) if entry.sweep else run_script(entry)
        if files:
            MEASURED.mkdir(exist_ok=True)
        for name, content in files.items():
            write_atomic(MEASURED / name, content)
        fill_pages(known)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
