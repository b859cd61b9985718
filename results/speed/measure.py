"""Load time, weight bytes, peak memory, first token and decoding speed of checkpoints, next to their dense form."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...evals.speed.process import check_engine, is_installed, measure_apart
from ...evals.speed.spec import Measured, SpeedSpec
from ...foundation.errors import UserError, unknown
from ...models.export import export_dense
from ...models.loading import DTYPES, weights_size
from ...models.matrices import Size
from ...runners.choices import pick_device
from .subject import Subject, dense_twin, find_subject

ENGINES = ("transformers", "vllm")
Measure = Callable[[SpeedSpec], Measured]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class SpeedRequest:
    """What `measure_speed` needs to know; see the options of ``bench speed``.

    Attributes:
        checkpoints: folders, presets or cells ``RUN:LABEL@RATIO``.
        engines: some of `ENGINES`.
        batch_sizes: prompts side by side.
        prompt_tokens, new_tokens: lengths in tokens.
        dtype: of the weights as they run; ``auto`` is the first checkpoint's own, for all of them.
        device: torch device or ``auto``.
        threads: CPU threads; None takes OMP_NUM_THREADS or every core this process may use.
        repeats: rounds.
        against_dense: whether factorised checkpoints are measured next to their dense export.
        seed: of cells, where there are several.
        storage: URL that missing files of cells are brought from.
        instead_of_vllm: what else the user can type where vLLM is not installed.
    """

    checkpoints: Sequence[str]
    engines: Sequence[str] = ENGINES
    batch_sizes: Sequence[int] = (1, 16, 64)
    prompt_tokens: int = 32
    new_tokens: int = 32
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    repeats: int = 3
    against_dense: bool = True
    seed: int | None = None
    storage: str | None = None
    instead_of_vllm: str = "or add --engine transformers"


@dataclass(frozen=True)
class Series:
    """All rounds of one checkpoint with one engine.

    Attributes:
        subject: the checkpoint.
        spec: what was measured.
        rounds: one measurement each, in the order in which they were made.
        size: parameters and bytes of the weights on disk.
        reference: index of its dense form's series, or None.
    """

    subject: Subject
    spec: SpeedSpec
    rounds: tuple[Measured, ...]
    size: Size
    reference: int | None

    def values(self, metric: str, batch: int | None = None) -> list[float]:
        """Return one value a round.

        Args:
            metric: a field of `Measured`, or with a batch size of `Timing`; or ``weight_bytes``, the weights in the
                number format that ran, which is counted once.
            batch: which batch size.
        """
        if metric == "weight_bytes":
            return [float(self.size.parameters * DTYPES[self.spec.dtype].itemsize)]
        if batch is None:
            return [float(getattr(measured, metric)) for measured in self.rounds]
        return [float(getattr(t, metric)) for measured in self.rounds for t in measured.timings if t.batch == batch]


def median_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median over rounds of value / reference: both of a round were measured one after the other."""
    return statistics.median(a / b for a, b in zip(values, reference, strict=True))


def measure_speed(
    request: SpeedRequest, progress: Progress | None = None, measure: Measure = measure_apart
) -> list[Series]:
    """Measure checkpoints in alternating rounds, each measurement in a process of its own.

    Every round measures every checkpoint with every engine once, every other round in the opposite order, so that a
    machine that grows slower or faster favours none.

    Args:
        request: what to measure.
        progress: called with (measurements done, in all, what comes next).
        measure: makes one measurement.

    Returns:
        One series per engine and checkpoint; dense exports stand before the first checkpoint that they belong to.

    Raises:
        UserError: unusable input, before anything is measured; or a measurement that failed.
    """
    with measured_subjects(request) as (subjects, dtype):
        device = pick_device(request.device)
        specs = [
            SpeedSpec(
                str(subject.folder.resolve()),
                engine,
                dtype,
                device,
                request.threads or default_threads(),
                tuple(request.batch_sizes),
                request.prompt_tokens,
                request.new_tokens,
            )
            for engine in request.engines
            for subject in subjects
        ]
        names = [subject.name for subject in subjects] * len(request.engines)
        rounds = alternate(specs, request.repeats, progress, measure, names)
        return _series(subjects, specs, rounds)


@contextmanager
def measured_subjects(request: SpeedRequest) -> Iterator[tuple[list[Subject], str]]:
    """Give the checkpoints to measure, dense exports among them for as long as the block runs, and their dtype.

    Raises:
        UserError: unusable input.
    """
    _check(request)
    subjects = [find_subject(name, request.seed, request.storage) for name in request.checkpoints]
    if repeated := {s.folder.resolve() for s in subjects if sum(s.folder.samefile(o.folder) for o in subjects) > 1}:
        raise UserError(f"the checkpoint {min(repeated)} is named twice; name each once")
    for subject in subjects:
        _check_context(subject, request)
    dtype = subjects[0].stored_dtype if request.dtype == "auto" else request.dtype
    with tempfile.TemporaryDirectory(prefix="bench-speed-") as scratch:
        if request.against_dense:
            subjects = _with_dense(subjects, Path(scratch), dtype)
        yield subjects, dtype


def _series(
    subjects: Sequence[Subject], specs: Sequence[SpeedSpec], rounds: Sequence[Sequence[Measured]]
) -> list[Series]:
    twins = dense_twins(subjects)
    series = []
    for index, spec in enumerate(specs):
        subject = subjects[index % len(subjects)]
        first = index - index % len(subjects)  # of this engine
        twin = twins[index % len(subjects)]
        reference = None if twin is None else first + twin
        series.append(Series(subject, spec, tuple(rounds[index]), weights_size(subject.folder), reference))
    return series


def dense_twins(subjects: Sequence[Subject]) -> list[int | None]:
    """Return the index of each checkpoint's dense form among them; None for dense ones and where there is none."""
    # Reversed, so that of several dense forms of a model the first is the reference.
    dense = {s.shape: index for index, s in reversed(list(enumerate(subjects))) if not s.factorised}
    return [dense.get(subject.shape) if subject.factorised else None for subject in subjects]


def installed_engines() -> tuple[str, ...]:
    """Return the engines that can be measured here."""
    return tuple(engine for engine in ENGINES if is_installed(engine))


def default_threads() -> int:
    """Return OMP_NUM_THREADS where it is set, else the number of cores this process may use."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else len(os.sched_getaffinity(0))


def _check(request: SpeedRequest) -> None:
    if not request.checkpoints:
        raise UserError("name at least one checkpoint, such as bench speed FOLDER")
    for engine in request.engines:
        if engine not in ENGINES:
            raise unknown("engine", engine, [*ENGINES, "both"])
        check_engine(engine, pick_device(request.device), request.instead_of_vllm)
    if request.dtype != "auto" and request.dtype not in DTYPES:
        raise unknown("dtype", request.dtype, ["auto", *DTYPES])
    sizes = request.batch_sizes
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise UserError("--batch-sizes takes different whole numbers from 1, such as 1,16,64")
    least = {"--prompt-tokens": (request.prompt_tokens, 1), "--new-tokens": (request.new_tokens, 2)}
    least |= {"--repeats": (request.repeats, 1), "--threads": (1 if request.threads is None else request.threads, 1)}
    for option, (value, smallest) in least.items():
        if value < smallest:
            raise UserError(f"{option} is {value} and must be at least {smallest}")


def _check_context(subject: Subject, request: SpeedRequest) -> None:
    config = json.loads((subject.folder / "config.json").read_text(encoding="utf-8"))
    context = int(config.get("max_position_embeddings") or 2048)
    if request.prompt_tokens + request.new_tokens > context:
        raise UserError(
            f"{request.prompt_tokens} prompt and {request.new_tokens} new tokens do not fit the context of "
            f"{subject.name}, {context} tokens; lower --prompt-tokens or --new-tokens"
        )


def _with_dense(subjects: Sequence[Subject], scratch: Path, dtype: str) -> list[Subject]:
    """Put a dense export before the first factorised checkpoint of each model that has no dense one among them."""
    present = {subject.shape for subject in subjects if not subject.factorised}
    chosen: list[Subject] = []
    for number, subject in enumerate(subjects):
        if subject.factorised and subject.shape not in present:
            folder = scratch / f"dense-{number}"
            export_dense(subject.folder, folder, dtype)
            chosen.append(dense_twin(subject, folder))
            present.add(subject.shape)
        chosen.append(subject)
    return chosen


def alternate(
    specs: Sequence[SpeedSpec],
    repeats: int,
    progress: Progress | None = None,
    measure: Measure = measure_apart,
    names: Sequence[str] = (),
) -> list[list[Measured]]:
    """Measure every spec once a round, every other round in the opposite order.

    Args:
        specs: what to measure.
        repeats: rounds.
        progress: called with (measurements done, in all, what comes next).
        measure: makes one measurement.
        names: for people, one a spec; the folders' names otherwise.

    Returns:
        The rounds of each spec.
    """
    measured: list[list[Measured]] = [[] for _ in specs]
    labels = names or [Path(spec.folder).name for spec in specs]
    done = 0
    for number in range(repeats):
        order = range(len(specs)) if number % 2 == 0 else range(len(specs) - 1, -1, -1)
        for index in order:
            if progress:
                title = f"round {number + 1} of {repeats}: {labels[index]}, {specs[index].engine}"
                progress(done, repeats * len(specs), title)
            measured[index].append(measure(specs[index]))
            done += 1
    return measured
