"""Finished evaluations by name: comparing, rescoring and showing their stored samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ...evals.base import EvalSettings, benchmarks
from ...evals.kinds.choice import ChoiceBenchmark
from ...evals.kinds.generative import GenerativeBenchmark
from ...evals.rescore import rescore
from ...evals.samples import Sample, open_samples, parse_samples
from ...evals.tasks.chat import is_chat_variant
from ...foundation.errors import UserError
from ...foundation.progress import track
from ...records.files import Record, read_records, write_records
from ...records.schema import BUDGET, KEY_COLUMNS
from ...runners.store.folders import StageStore, verify_around
from ...runners.task_files import know_task_of
from ...runners.training.data import DATA_SEED
from ..cells import find_cell, is_cell, stage_folder
from .compare import Comparison, compare

_SHOWN = 12  # of what there is, in messages
_CELL = [column for column in KEY_COLUMNS if column not in ("metric", "scorer")]
"""What the records of one evaluation of one cell have in common."""


def sample_file(name: str, benchmark: str | None = None, seed: int | None = None) -> Path:
    """Find the samples behind a name.

    Args:
        name: a ``samples*.jsonl`` file, a folder with one (an evaluate stage, or what ``bench eval --out`` wrote), or
            ``RUN:LABEL@RATIO`` for a cell of a run, such as ``runs/tiny-toy-math:svd@3``.
        benchmark, seed: which one, where a cell has several.

    Raises:
        UserError: nothing of that name, or more than one.
    """
    path = Path(name)
    if path.is_file() or (path.exists() and not path.is_dir()):
        verify_around(path)
        return path
    if path.is_dir() and not (path / "results.csv").exists():
        files = sorted(path.glob(f"samples-{benchmark}.jsonl" if benchmark else "samples*.jsonl"))
        if len(files) == 1:
            verify_around(path)
            return files[0]
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(f"{path} must hold one samples file (found: {names}); name the file, or add --benchmark")
    if not is_cell(name):
        raise UserError(
            f"'{name}' names no samples; write a samples.jsonl file, its folder, or RUN:LABEL@RATIO such as "
            "runs/tiny-toy-math:svd@3 (finetuned@1 is the uncompressed model)"
        )
    stage = find_cell(name, benchmark, seed).stage
    return _verified(stage) / "samples.jsonl"


def _verified(stage: Path) -> Path:
    """Return the folder of a stage after comparing its files with their checksums."""
    if not stage.is_dir():
        raise UserError(f"the stage folder {stage} is gone; run the sweep again to make it")
    StageStore(stage.parent).verify(stage.name)
    return stage


def load_samples(path: Path) -> list[Sample]:
    """Read the lines of a samples file; where a task file made them, its benchmarks are known from here on."""
    know_task_of(path.parent)
    try:
        with open_samples(path) as file:
            return parse_samples(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate again, or name another run") from error


def compare_samples(a: str, b: str, benchmark: str | None, seed: int | None, scorer: str | None) -> Comparison:
    """Test whether two evaluations of the same problems differ; names as in `sample_file`.

    Raises:
        UserError: both names are those of one evaluation, a file cannot be read, or they are not of the same problems.
    """
    files = [sample_file(name, benchmark, seed) for name in (a, b)]
    if files[0].resolve() == files[1].resolve():
        raise UserError(f"{a} and {b} are the same evaluation; name two, such as those of two methods at one ratio")
    return compare(load_samples(files[0]), load_samples(files[1]), scorer)


@dataclass(frozen=True)
class Change:
    """A headline before and after rescoring; ``steps`` after the first finetuning are 0 where none are named."""

    label: str
    ratio: float
    steps: int
    seed: int
    benchmark: str
    before: float
    after: float


def rescore_run(run: Path, data: Path | None, out: Path | None, allow_weak: bool = False) -> tuple[list[Change], Path]:
    """Score all stored samples of a run with today's rules, without a model.

    Args:
        run: folder of a run.
        data: local datasets, as when the run was made.
        out: folder for the new results; None makes ``RUN/rescored``.
        allow_weak: run generated code under resource limits alone.

    Returns:
        The headline of every cell's evaluation before and after, and the new results.csv. Records keep their
        provenance.
    """
    frame = read_records(run)
    if frame.empty:
        raise UserError(f"{run} holds no records; name the folder of a run that has results")
    names = list(Record.model_fields)
    changes, records = [], []
    evaluations = frame.groupby(["stage_key", "benchmark"], sort=False)
    for (key, benchmark), rows in track(evaluations, len(evaluations), "evaluations"):
        stage = stage_folder(run, str(key))
        know_task_of(stage)
        cls = benchmarks.get(str(benchmark))
        if not issubclass(cls, (GenerativeBenchmark, ChoiceBenchmark)):
            records += [Record(**{name: row[name] for name in names}) for _, row in rows.iterrows()]
            continue
        settings = EvalSettings(data_dir=data, seed=DATA_SEED, allow_weak_isolation=allow_weak)
        outcome = rescore(load_samples(_verified(stage) / "samples.jsonl"), cls(), settings)
        headline = next(metric for metric in outcome.metrics if metric.headline)
        # One evaluation may be of several cells: of every seed of a pretrained model, of methods with equal weights.
        for _, cell in rows.groupby(_CELL, sort=False):
            common = {name: cell.iloc[0][name] for name in names}
            for metric in outcome.metrics:
                values = asdict(metric)
                records.append(Record(**(common | {"metric": values.pop("name")} | values)))
            before = cell[cell.headline].iloc[0]
            changes.append(
                Change(
                    before.label,
                    before.ratio_target,
                    before[BUDGET],
                    before.seed,
                    before.benchmark,
                    before.value,
                    headline.value,
                )
            )
    csv, _ = write_records(out or (run if run.is_dir() else run.parent) / "rescored", records)
    return changes, csv


@dataclass(frozen=True)
class Filters:
    """Which samples to show; None shows all.

    Attributes:
        verdict: headline verdict, such as ``correct``, ``wrong``, ``no-answer``.
        finish: finish reason, ``stop`` or ``length``.
        problem: a problem's id.
        contains: text that the completion must contain.
    """

    verdict: str | None = None
    finish: str | None = None
    problem: str | None = None
    contains: str | None = None


def show_samples(lines: list[Sample], filters: Filters) -> Iterator[Sample]:
    """Yield the lines that pass the filters.

    Raises:
        UserError: a verdict, a finish reason or a problem that none of the samples has.
    """
    present = {
        "verdict": (filters.verdict, {str(line["verdicts"].get(line["scorer"])) for line in lines}),
        "finish reason": (filters.finish, {line["finish_reason"] for line in lines}),
        "problem": (filters.problem, {str(line["problem"]) for line in lines}),
    }
    for kind, (asked, known) in present.items():
        if asked is not None and asked not in known:
            names = sorted(known)
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            raise UserError(f"no sample has the {kind} '{asked}'; there are: {shown}")
    for line in lines:
        if filters.verdict is not None and line["verdicts"].get(line["scorer"]) != filters.verdict:
            continue
        if filters.finish is not None and line["finish_reason"] != filters.finish:
            continue
        if filters.problem is not None and str(line["problem"]) != filters.problem:
            continue
        if filters.contains is not None and filters.contains not in line["completion"]:
            continue
        yield line


def problem_text(line: Sample, data: Path | None) -> str:
    """Return the prompt of a sample's problem, made again from the data; empty where the data are not there."""
    chat = is_chat_variant(str(line["variant"]))
    settings = EvalSettings(data_dir=data, stage=line["stage"], seed=DATA_SEED, chat=chat)
    try:
        benchmark = benchmarks.get(line["benchmark"])()
        if not isinstance(benchmark, GenerativeBenchmark | ChoiceBenchmark):
            return str(line.get("prompt", ""))
        data_rows = benchmark.data(settings).rows
        for index, row in enumerate(data_rows):
            if benchmark.problem_id(row, index) == line["problem"]:
                return str(benchmark.prompts([row], settings)[0])
    except UserError:
        pass
    return ""
