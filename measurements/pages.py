"""The tables that pages show of measurements, made of the committed records in ``docs/measured``.

A page has them between two marks, ``<!-- measured: NAME -->`` and ``<!-- end -->``. A second word in the first mark
says how much is shown: nothing more is everything, ``table`` the first table and its conditions. Where a measurement
has no records yet, what is between the marks stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lowrank_bench.foundation.errors import UserError, unknown
from lowrank_bench.records.files import read_records
from lowrank_bench.records.metrics import is_fraction
from lowrank_bench.results.tables.pivot import Pivot, format_cell, pivot

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "docs" / "measured"
PAGES = (ROOT / "README.md", ROOT / "docs" / "measurements.md")
BLOCK = re.compile(r"^<!-- measured: ([\w-]+)(?: (\w+))? -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Measurement:
    """One entry of ``measurements.yaml``.

    Attributes:
        name: of its files in ``docs/measured`` and of its marks in pages.
        command: what is run; ``DATA`` in it is the folder with the local datasets.
        heavy: whether it takes so long that it has to be asked for.
        quoted: the page whose figures its block repeats while it has no records; else empty.
    """

    name: str
    command: str
    heavy: bool = False
    quoted: str = ""

    @property
    def sweep(self) -> bool:
        """Whether it is a sweep, whose result is its records; else a script, whose result is what it prints."""
        return self.command.startswith("bench run ")

    @property
    def needs_data(self) -> bool:
        """Whether it reads the local datasets."""
        return "DATA" in self.command


@dataclass(frozen=True)
class Result:
    """What was measured: the committed files of a measurement.

    Attributes:
        facts: of ``NAME.json``: the command; of several budgets ``findings``, sentences of the report; of a script
            commit, date, machine, load and output.
        records: of ``NAME.csv``, the headline records; None for a script.
    """

    facts: Mapping[str, Any]
    records: pd.DataFrame | None


def read_list(path: Path = Path(__file__).with_name("measurements.yaml")) -> dict[str, Measurement]:
    """Return the measurements by name, in the order of the file."""
    entries = [Measurement(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]
    for entry in entries:
        if not entry.sweep and not entry.command.startswith("python perf/"):
            raise UserError(
                f"{path.name}: the command of {entry.name} begins with neither 'bench run' nor 'python perf/'"
            )
    return {entry.name: entry for entry in entries}


def read_result(name: str, folder: Path = MEASURED) -> Result | None:
    """Return what was measured last under that name, None if nothing was.

    Raises:
        UserError: the records are damaged.
    """
    facts, records = folder / f"{name}.json", folder / f"{name}.csv"
    if not facts.is_file():
        return None
    loaded = json.loads(facts.read_text(encoding="utf-8"))
    return Result(loaded, read_records(records) if records.is_file() else None)


def update_page(page: str, known: Mapping[str, Measurement], folder: Path = MEASURED) -> str:
    """Return a page's text with all its blocks made of the records in ``folder``.

    Raises:
        UserError: a block names no measurement, or asks for a form that there is not.
    """

    def filled(match: re.Match[str]) -> str:
        name, form = match[1], match[2] or "all"
        if name not in known:
            raise unknown("measurement", name, known)
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        result = read_result(name, folder)
        if result is None:
            return match[0]
        if result.records is None:
            body = script_section(result.facts)
        else:
            body = FORMS[form](name, result.facts, result.records)
        first = match[0].partition("\n")[0]
        return f"{first}\n\n{body}\n\n<!-- end -->"

    return BLOCK.sub(filled, page)


def script_section(facts: Mapping[str, Any]) -> str:
    """Return what a script printed, below its command and conditions."""
    machine = f"{facts['machine']}, {facts['cores']} cores, load {facts['load']:.1f} before it began"
    measured = f"Measured {facts['date']} at commit {short_commit(facts['commit'])}, {machine}."
    return f"    {facts['command']}\n\n{measured}\n\n```text\n{facts['output'].strip()}\n```"


def sweep_section(name: str, facts: Mapping[str, Any], records: pd.DataFrame) -> str:
    """Return all tables of a sweep, below its command and conditions."""
    parts = [f"    {facts['command']}", f"{trained(records)} {measured(records)} [Records](measured/{name}.csv)."]
    for table in pivot(records):
        title = f"**{unit(table)}** on `{table.variant}`, n = {table.n} ({table.engine}, {table.dtype})"
        title += f", {table.budget:,} steps after the first finetuning" if table.budget else ""
        parts += [f"{title}, {interval(table)}:", grid(table)]
    if "findings" in facts:
        parts.append("What the report says about the order of the methods:")
        parts.append("\n".join(f"- {sentence}" for sentence in facts["findings"]))
        parts.append(f"![{pivot(records)[0].metric} over training tokens](measured/{name}.png)")
    return "\n\n".join(parts)


def table_alone(name: str, facts: Mapping[str, Any], records: pd.DataFrame) -> str:
    """Return the first table of a sweep below its conditions and its command."""
    table, first = pivot(records)[0], records.iloc[0]
    subject = f"`{first['model']}` ({first['params_original']:,} parameters) on {table.task}"
    title = f"{unit(table)[0].upper()}{unit(table)[1:]}, {subject}, n = {table.n}, {interval(table)}."
    return f"{title} {measured(records)} `{facts['command']}`\n\n{grid(table)}"


FORMS = {"all": sweep_section, "table": table_alone}


def grid(table: Pivot) -> str:
    """Return a table of methods by ratio in Markdown."""
    rows = [["", *(f"{ratio:g}×" for ratio in table.ratios)], ["---"] * (len(table.ratios) + 1)]
    several = sum(row.uncompressed for row in table.rows) > 1  # as published, and finetuned
    for row in table.rows:
        cells = [row.cells.get(ratio) for ratio in table.ratios]
        texts = ["" if cell is None else " ".join(format_cell(table.metric, cell)) for cell in cells]
        uncompressed = row.label if several else "uncompressed"
        rows.append([uncompressed if row.uncompressed else f"`{row.label}`", *texts])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace("|  ", "| ")


def unit(table: Pivot) -> str:
    """Return metric and scorer, in percent where it is a share."""
    scorer = f" ({table.scorer})" if table.scorer else ""
    return f"{table.metric}{scorer}{' in percent' if is_fraction(table.metric) else ''}"


def interval(table: Pivot) -> str:
    """Return what is in brackets, and the seeds."""
    level = f"{100 * table.confidence:g} % interval in brackets"
    if len(table.seeds) > 1:
        return f"mean of seeds {listed(table.seeds)}, {level} (over seeds where it ends in their number)"
    return f"seed {table.seeds[0]}, {level}"


def trained(records: pd.DataFrame) -> str:
    """Return the sentence about the model's size and the steps of its trainings."""
    first = records.iloc[0]
    model = f"`{first['model']}` has {first['params_original']:,} parameters."
    compressed = records[records.method != "none"]
    before, after = set(compressed.steps_finetune), set(compressed.steps_compress + compressed.steps_recover)
    if not any(before | after):
        return f"{model} Nothing was trained."
    steps = (
        f"{listed(before)} steps of finetuning before compression, and {listed(after)} while compressing and after it"
    )
    return f"{model} Every method gets {steps}."


def measured(records: pd.DataFrame) -> str:
    """Return the sentence with date, commit and machine of records."""
    days = sorted({text[:10] for text in records.evaluated_at})
    commits = [short_commit(commit) for commit in dict.fromkeys(records.sort_values("evaluated_at").git_commit)]
    machines = [
        f"{row.device}, {row.threads} {'thread' if row.threads == 1 else 'threads'} a stage"
        for row in records[["device", "threads"]].drop_duplicates().itertuples()
    ]
    day = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"Measured {day} at {'commit' if len(commits) == 1 else 'commits'} {listed(commits)}, {listed(machines)}."


def short_commit(commit: str) -> str:
    """Return a commit's first seven digits, and whether files were changed."""
    digits, _, changed = commit.partition("+")
    return (digits[:7] or "unknown") + (" with changes" if changed else "")


def listed(values: Iterable[object]) -> str:
    """Return values with commas; sets in ascending order."""
    ordered: Sequence[Any] = sorted(values) if isinstance(values, set) else list(values)
    return ", ".join(map(str, ordered))
