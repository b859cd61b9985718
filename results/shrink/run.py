"""`bench shrink`: the smallest model whose accuracy stays within a share of the uncompressed one's.

Every evaluation is a cell of an ordinary sweep in the same store. What is asked next follows from finished cells alone,
so a search that was interrupted goes on where it was and ends the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ...evals.tasks.files.opening import open_task
from ...foundation.errors import UserError
from ...foundation.files import new_folder, read_json, write_json
from ...models.presets import resolve_model
from ...records.files import Record, write_records
from ...records.metrics import is_perplexity
from ...runners.config import SweepConfig, make_config, merge
from ...runners.graph import sweep_name
from ...runners.layout import BASELINE
from ...runners.sweep import Executed, execute
from ...runners.training.data import DATA_SEED
from ..cells import checkpoint_folder
from ..leaderboard.ranking import Scores
from ..samples.paired_scores import stage_scores
from .margin import CONFIDENCE, Margin, confirmation_confidence, margin
from .search import largest_confirmed, largest_ratio, ratio_grid

CONFIRM_SEED = DATA_SEED + 1000
"""Of the first set of generated problems that the search does not see; the next candidate gets the next seed."""

REPORT = "shrink.json"
MODEL = "smallest"


@dataclass(frozen=True)
class Probe:
    """One cell that was evaluated.

    Attributes:
        method: as in tables.
        target, ratio: asked for, and achieved over the whole model.
        parameters: of the compressed model.
        margin: over the share that has to be kept.
        problem_seed: of the test problems, None for the sweep's.
        seconds: of compression, recovery and evaluation, when they ran.
    """

    method: str
    target: float
    ratio: float
    parameters: int
    margin: Margin
    problem_seed: int | None = None
    seconds: float = 0.0


@dataclass
class Shrunk:
    """The result of a search.

    Attributes:
        share: of the uncompressed accuracy that has to be kept.
        benchmark, metric: what was measured.
        tried: every cell, in order.
        smallest: the smallest model that keeps the share, or None.
        confirmations: candidates on problems that the search did not see, in order; the last one is of
            ``smallest``.
        confirmable: whether there are such problems.
        folder: of results.
        model: the checkpoint, or None.
        grid: ratios that the search chose from.
    """

    share: float
    benchmark: str
    metric: str
    grid: list[float]
    folder: Path
    tried: list[Probe] = field(default_factory=list)
    smallest: Probe | None = None
    confirmations: list[Probe] = field(default_factory=list)
    confirmable: bool = True
    model: Path | None = None

    def next_ratio(self) -> float | None:
        """Return the least ratio above that of ``smallest`` that did not hold for some method, when it was measured."""
        least = self.smallest.target if self.smallest else 0.0
        failed = [p.target for p in [*self.tried, *self.confirmations] if not p.margin.holds]
        return min((target for target in failed if target > least), default=None)

    def undecided(self) -> Probe | None:
        """Return the cell that fewest problems more would show to keep the share, or None."""
        needs = [(p.margin.problems_to_decide() or 0, p) for p in self.tried if p.margin.value > 0]
        return min((need for need in needs if need[0]), key=lambda need: need[0], default=(0, None))[1]

    def seconds_per_probe(self) -> float:
        """Return the mean time of a cell beyond the stages that all share."""
        return sum(probe.seconds for probe in self.tried) / max(1, len(self.tried))


def shrink(
    config: SweepConfig,
    share: float,
    between: tuple[float, float],
    resolution: float = 0.05,
    confirm: bool = True,
    console: Console | None = None,
) -> Shrunk:
    """Find the smallest model, write what was tried, and copy its checkpoint to ``OUT/NAME-shrink/smallest``.

    Args:
        config: model, task, methods and how cells are trained and measured; its ratios are not used.
        share: of the uncompressed model's accuracy that has to be kept with 95 % confidence (`margin`), in (0, 1].
        between: least and largest ratio.
        resolution: of neighbouring ratios, relative.
        confirm: whether candidates are measured on generated problems with another seed.
        console: where progress goes; None is silent.

    Raises:
        UserError: bad input; a benchmark without a score for each problem; an uncompressed model that solves nothing.
    """
    check(config, share, between, resolution)
    search = _Search(config, share, ratio_grid(*between, resolution), console or Console(quiet=True))
    return search.run(confirm)


def check(config: SweepConfig, share: float, between: tuple[float, float], resolution: float) -> None:
    """Raise a `UserError` for what no search can be made of."""
    if not 0 < share <= 1:
        raise UserError(f"--keep {100 * share:g}% is not usable; write more than 0% and at most 100%, such as 95%")
    least, most = between
    if not 1 < least < most <= 100:
        raise UserError(
            f"--between {least:g},{most:g} is not usable; write two ratios above 1 and up to 100, the smaller first, "
            "such as 1.1,8"
        )
    if not 0.005 <= resolution <= 1:
        raise UserError(f"--resolution {resolution:g} is not usable; write 0.005 to 1, such as 0.05 for 5 % steps")
    if len(config.seeds) != 1:
        raise UserError("bench shrink searches with one seed; name one with --seeds")
    if len(config.training.recover.steps or ()) > 1:
        raise UserError("bench shrink searches with one budget; name one number with --recover-steps")
    if config.training.tune:
        raise UserError("bench shrink trains with one learning rate; name it with --lr, and leave --tune out")
    if config.evaluation.before_recovery:
        raise UserError("bench shrink measures models after their recovery; leave --before-recovery out")
    if len(config.training.recovery) > 1 or config.training.recovery[0].name == "none":
        raise UserError("bench shrink measures models after one recovery; name one that trains, such as full or lora")
    if config.bytes is not None or config.bits != (16,) or config.controls:
        raise UserError("bench shrink searches over ratios in 16 bits; leave bytes, bits and controls out")
    if config.execution.storage:
        raise UserError("bench shrink keeps the weights of its cells in --out; leave --storage out")


class _Search:
    """One search; cells that were evaluated are kept by method, ratio and seed of the problems."""

    def __init__(self, config: SweepConfig, share: float, grid: list[float], console: Console) -> None:
        self.config, self.share, self.grid, self.console = config, share, grid, console
        self.methods = {spec.shown: spec for spec in config.methods}
        self.records: dict[tuple[str, ...], Record] = {}
        self.probes: dict[tuple[str, float, int | None], Probe] = {}
        self.data: dict[int | None, str] = {}
        self.result: Shrunk | None = None
        source, task = resolve_model(config.model, config.revision), open_task(config.task)
        # The sweep of the same configuration has its results in the folder of that name.
        self.name = f"{sweep_name(config.name, source, task.name)}-shrink"

    def run(self, confirm: bool) -> Shrunk:
        best = largest_ratio(list(self.methods), self.grid, self._holds)
        assert self.result is not None
        if best is not None and confirm:
            best = largest_confirmed(list(self.methods), self.grid, best, self._holds, self._confirms)
        if best is not None:
            self.result.smallest = self._probe(best[0], self.grid[best[1]])
        self._write()
        return self.result

    def _holds(self, method: str, ratio: float) -> bool:
        return self._probe(method, ratio).margin.holds

    def _confirms(self, method: str, ratio: float) -> bool:
        """Return whether a candidate keeps the share on problems not seen before, or there are no such problems."""
        assert self.result is not None
        done = self.result.confirmations
        fresh = self._probe(method, ratio, CONFIRM_SEED + len(done))
        # A benchmark with fixed data ignores the seed: these are the search's own problems, which confirm nothing.
        if self.data[fresh.problem_seed] == self.data[None]:
            self.result.confirmable = False
            return True
        done.append(fresh)
        return fresh.margin.holds

    def _probe(self, method: str, ratio: float, problem_seed: int | None = None) -> Probe:
        key = method, ratio, problem_seed
        if key not in self.probes:
            self.probes[key] = self._evaluate(method, ratio, problem_seed)
        return self.probes[key]

    def _evaluate(self, method: str, ratio: float, problem_seed: int | None) -> Probe:
        # All weights are kept: which cell is the smallest, whose checkpoint is copied, is known at the end alone.
        changes: dict[str, Any] = {"name": self.name, "ratios": (ratio,), "execution": {"keep": "all"}}
        if problem_seed is not None:
            changes["evaluation"] = {"problem_seed": problem_seed}
        config = make_config(merge(self.config.model_dump(exclude_unset=True), changes)).model_copy(
            update={"methods": (self.methods[method],)}
        )
        done = execute(config, self.console)
        done.raise_failures()
        probe = self._probe_of(done, method, ratio, problem_seed)
        verdict = (
            "keeps" if probe.margin.holds else "is not shown to keep" if probe.margin.undecided else "does not keep"
        )
        if problem_seed is None or self.data[problem_seed] != self.data[None]:  # else it would read as a confirmation
            self.console.print(f"{method} at {ratio:g}x {verdict} {self.share:.0%}: {sentence(probe)}", highlight=False)
        return probe

    def _probe_of(self, done: Executed, method: str, ratio: float, problem_seed: int | None) -> Probe:
        if problem_seed is None:
            self.records |= {_name(record): record for record in done.records}
        benchmark = done.records[0].benchmark
        rows = [row for row in done.records if row.headline and row.benchmark == benchmark]
        # The last one is the finetuned model where there is one; the pretrained one comes before it.
        before = [row for row in rows if row.method == BASELINE.name][-1]
        after = next(row for row in rows if row.method != BASELINE.name)
        self.data[problem_seed] = before.dataset_sha256
        if self.result is None:
            folder = done.plan.config.execution.folder / done.plan.name
            self.result = Shrunk(self.share, before.variant, before.metric, self.grid, folder)
        scores = [_scores(done, row) for row in (after, before)]
        if scores[0].problems != scores[1].problems:
            raise UserError("the two models were measured on other problems or prompts; remove --out and search again")
        small, large = ([float(value) for value in score.values] for score in scores)
        confidence = CONFIDENCE if problem_seed is None else confirmation_confidence(problem_seed - CONFIRM_SEED)
        difference = margin(small, large, self.share, confidence)
        if difference.uncompressed == 0:
            raise UserError(
                f"the uncompressed model solves none of the {difference.n} problems of {before.variant}, so there is "
                "nothing to keep; train it longer (--finetune-steps), or choose another benchmark with --benchmarks"
            )
        seconds = after.seconds_compress + after.seconds_recover + after.seconds_evaluate
        probe = Probe(method, ratio, after.ratio, after.params, difference, problem_seed, seconds)
        if problem_seed is None:
            self.result.tried.append(probe)
        return probe

    def _write(self) -> None:
        result = self.result
        assert result is not None
        write_records(result.folder, list(self.records.values()))
        if result.smallest is not None:
            name = f"{result.folder}:{result.smallest.method}@{result.smallest.target:g}"
            result.model = _keep(checkpoint_folder(name), result.folder / MODEL)
        write_json(result.folder / REPORT, as_plain(result))


def sentence(probe: Probe) -> str:
    """Say what a probe measured."""
    m = probe.margin
    return (
        f"{m.accuracy:.1%} against {m.uncompressed:.1%} uncompressed on {m.n:,} problems, {100 * m.value:+.1f} points "
        f"above the share, {100 * m.confidence:g} % interval {100 * m.low:+.1f} to {100 * m.high:+.1f}"
    )


def as_plain(result: Shrunk) -> dict[str, Any]:
    """Return a search as plain data; equal for equal cells, whenever and wherever they ran."""

    def plain(probe: Probe) -> dict[str, Any]:
        fields = asdict(probe)
        del fields["seconds"]
        return fields

    return {
        "share": result.share,
        "benchmark": result.benchmark,
        "metric": result.metric,
        "grid": result.grid,
        "tried": list(map(plain, result.tried)),
        "confirmations": list(map(plain, result.confirmations)),
        "confirmable": result.confirmable,
        "smallest": plain(result.smallest) if result.smallest else None,
    }


def _name(record: Record) -> tuple[str, ...]:
    return (record.stage_key, record.label, f"{record.ratio_target}", record.metric, record.scorer)


def _scores(done: Executed, row: Record) -> Scores:
    if is_perplexity(row.metric) or not row.higher_is_better:
        raise UserError(
            f"{row.metric} of {row.variant} is no accuracy, of which a share could be kept; name a benchmark with "
            "right and wrong answers by --benchmarks"
        )
    scores_of: Mapping[Any, Scores | str] = stage_scores(
        done.plan.store.path(row.stage_key), {(row.metric, row.scorer): row.value}
    )
    scores = scores_of[row.metric, row.scorer]
    if isinstance(scores, str):
        raise UserError(
            f"{row.metric} of {row.variant} has no score for each problem ({scores}); name another benchmark by "
            "--benchmarks"
        )
    return scores


def _keep(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint, in place of one that an earlier search left; a copy that is complete is left alone."""
    source = folder.with_name(f"{folder.name}.json")
    origin = {"copied_from": str(checkpoint.relative_to(folder.parent.parent))}
    if folder.is_dir() and source.is_file() and read_json(source) == origin:
        return folder
    # The note goes first and comes back last, so that an interrupted copy has none and is made again.
    source.unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)
    with new_folder(folder) as making:
        shutil.copytree(checkpoint, making, dirs_exist_ok=True)
    write_json(source, origin)
    return folder
