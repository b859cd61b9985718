"""Whether a stage loads its model whole or layer by layer, and what it will take at its peak."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from ...evals.base import benchmarks
from ...foundation.errors import UserError, unknown
from ...foundation.memory import BASE_BYTES, free_memory
from ...methods.base import Compressor, create_method
from ...methods.calibration.precision import PassDtype
from ...methods.correction import corrector
from ...methods.estimates import calibration_passes, fitter
from ...methods.matrixwise import MatrixCompressor
from ...methods.memory import Calibration, Peak, compress_peak, fit_peak
from ...methods.ranks.budget import Budget
from ...models.blocks import find_blocks
from ...models.dtypes import OWN
from ...models.footprint import SMALL_PARAMETERS, Footprint, check_model, context_length, token_bytes
from ...models.loading import DTYPES, load_model, own_dtype
from ...models.matrices import model_size
from ...models.streamed import NotStreamable, open_streamed, why_not_streamed
from ..graph import Plan
from ..specs import CompressStage, EvaluateStage, FitStage, QuantiseSpec, QuantiseStage, Stage
from ..stage_results import RecordedMemory
from ..tokenizers import PlanTokenizer
from ..training.data import CALIBRATION_TOKENS, TaskData, example_length
from .at_hand import assumed_longest, counts_by_size
from .stage_peaks import check_host, check_training, quantise_peak

Memory = Literal["auto", "layerwise", "whole"]
LAYERWISE_PARAMETERS = SMALL_PARAMETERS
"""Models from this size on are read layer by layer where they can be; smaller ones are loaded whole: it is faster."""
TITLE = "memory at the peak in GiB, by formula (docs/memory.md); of activations an estimate"
COLUMNS = ("what", "model", "host", "GPU", "disk for waiting states")
TOKENIZER_COPIES = 8
"""Memory of a tokenizer over the bytes of its ``tokenizer.json``: loading Gemma 3's 33 MB took 264 MB."""
_ALL = 8192  # examples that are assumed where a method reads all of them
_GIB = 2**30


@dataclass(frozen=True)
class LoadMode:
    """How a stage gets at its model's weights.

    Attributes:
        layerwise: layer by layer from disk, or whole.
        why: in words, where a large model is loaded whole; else empty.
        peak: by formula; None where none is known.
        advice: what makes it smaller, where that is not how the weights are read; else empty.
    """

    layerwise: bool
    why: str
    peak: Peak | None
    advice: str = ""

    def record(self) -> RecordedMemory:
        """Return what a stage's record says of it."""
        load: Literal["layerwise", "whole"] = "layerwise" if self.layerwise else "whole"
        if self.peak is None:
            return RecordedMemory(load=load, why=self.why)
        return RecordedMemory(load=load, why=self.why, predicted_peak_bytes=self.peak.total)

    def check(self, title: str, device: str) -> list[str]:
        """Return a warning if the peak may not fit into free memory, and on a GPU one if the host's part may not.

        Raises:
            UserError: what is certain of it does not fit.
        """
        if self.peak is None:
            return []
        free, available = free_memory(device), f"{free_memory(device) / _GIB:.1f} GiB are free on {device}"
        peak = self.peak.device if device != "cpu" else self.peak.host
        if self.peak.least > free:
            advice = "" if self.layerwise or self.why else "--memory layerwise, "
            because = f" (the model is loaded whole because {self.why})" if self.why else ""
            raise UserError(
                f"{title} needs at least {self.peak.least / _GIB:.1f} GiB, but {available}{because}; use {advice}"
                "head=false where the output head is the largest matrix, fewer --workers, or a machine with more memory"
            )
        notes = [f"{title} may need {peak / _GIB:.1f} GiB at its peak, but {available}"] if peak > free else []
        return notes if device == "cpu" else [*notes, *check_host(self.peak.usual or self.peak.host, title)]


def fit_mode(
    method: Compressor,
    skeleton: Any,
    location: str,
    revision: str,
    asked: str,
    device: str,
    passes: Calibration | None = None,
    dtype: PassDtype = "float32",
    kept_ranks: Mapping[str, int] | None = None,
) -> LoadMode:
    """Choose for `Compressor.fit`.

    Args:
        method: the method; for one that starts from another's bases, that one counts.
        skeleton: on the meta device.
        location, revision: of the checkpoint; an empty location where only the skeleton is known.
        asked: see `Memory`.
        device: torch device.
        passes: what is read, if the method reads; None takes what it may read at most.
        dtype: of the passes that read data.
        kept_ranks: parts that are kept of each group's factors; None for all.

    Raises:
        UserError: reading layer by layer was asked for and is not possible.
    """
    fitting = fitter(method)
    reads = fitting.requirements.data_in_fit
    layerwise, why = _choose(
        fitting.requirements.fit_layer_by_layer, "measure", reads, skeleton, location, revision, asked
    )
    if not isinstance(fitting, MatrixCompressor):
        return LoadMode(layerwise, why, None)
    passes = replace(passes or calibration(fitting, skeleton, None), autocast=dtype != "float32") if reads else None
    peak = fit_peak(fitting, skeleton, layerwise, device, passes, kept_ranks)
    return LoadMode(layerwise, why, _beside_tokenizer(peak, location))


def compress_mode(
    method: Compressor,
    skeleton: Any,
    location: str,
    revision: str,
    asked: str,
    device: str,
    ratios: Sequence[float] = (1.0,),
    passes: Calibration | None = None,
) -> LoadMode:
    """Choose for `Compressor.compress` to some ratios; the other arguments as in `fit_mode`."""
    layerwise, why = _choose(
        method.requirements.compress_layer_by_layer, "ask", False, skeleton, location, revision, asked
    )
    if not isinstance(method, MatrixCompressor):
        return LoadMode(layerwise, why, None)
    if not calibration_passes(method):
        passes = None
    elif passes is None:
        passes = calibration(method, skeleton, None)
    kept_ranks = (
        method.kept_ranks(skeleton, [Budget(ratio, method.guard) for ratio in ratios]) if max(ratios) > 1 else None
    )
    peak = compress_peak(method, skeleton, layerwise, device, ratios, passes, kept_ranks)
    return LoadMode(layerwise, why, _beside_tokenizer(peak, location))


def _beside_tokenizer(peak: Peak, location: str) -> Peak:
    """Return a peak with the tokenizer that processes keep from their first stage on."""
    file = Path(location) / "tokenizer.json" if location else Path()
    size = TOKENIZER_COPIES * file.stat().st_size if file.is_file() else 0
    # A usual of 0 says that none is known, and stays 0.
    return replace(peak, host=peak.host + size, usual=peak.usual and peak.usual + size)


def quantise_mode(
    spec: QuantiseSpec, skeleton: Any, width: str, device: str, passes: Calibration | None = None
) -> LoadMode:
    """Return what a rounding takes; the model is always loaded whole.

    A correction is made as svd-llm fits (`fit_peak`), before anything is rounded.

    Args:
        spec: what is rounded and corrected.
        skeleton: on the meta device.
        width: dtype that the weights are loaded in.
        device: torch device.
        passes: what a whitened correction reads.
    """
    correction = spec.correction
    rounding = quantise_peak(skeleton, spec.scheme, width, device, correction.rank if correction else 0)
    if correction is None:
        return LoadMode(False, "", rounding)
    passes = None if passes is None else replace(passes, autocast=spec.calibration_dtype != "float32")
    method = corrector(correction)
    kept_ranks = {
        matrix.name: min(correction.rank, matrix.in_features, matrix.out_features)
        for matrix in method.targets(skeleton)
    }
    fitting = fit_peak(method, skeleton, False, device, passes, kept_ranks)
    both = [
        max(getattr(fitting, name), getattr(rounding, name)) for name in ("host", "device", "least", "disk", "usual")
    ]
    return LoadMode(False, "", Peak(*both))


def calibration(method: Compressor, skeleton: Any, length: int | None) -> Calibration:
    """Return what a method reads while fitting, at most."""
    samples = getattr(method, "samples", None) or _ALL
    asked = method.requirements.calibration_length or length or CALIBRATION_TOKENS
    longest = min(asked, context_length(skeleton.config))
    return Calibration(samples, getattr(method, "batch_size", 8), longest)


def calibration_of(method: Compressor, data: TaskData | None) -> Calibration | None:
    """Return what a method reads of data that are at hand; None without data."""
    if data is None:
        return None
    batch_size = getattr(method, "batch_size", 8)
    samples, longest = data.extent(getattr(method, "samples", None))
    return Calibration(samples, min(batch_size, samples), longest)


def read_length(stage: Stage) -> int | None:
    """Return the longest example in tokens that a stage reads but for the model's context, None where it reads none."""
    return None if stage.data is None else example_length(stage.data.task, stage.data.max_length)


def _choose(
    able: bool, asks: str, reads: bool, skeleton: nn.Module, location: str, revision: str, asked: str
) -> tuple[bool, str]:
    if asked not in get_args(Memory):
        raise unknown("value of --memory", asked, list(get_args(Memory)))
    if asked == "whole" or (asked == "auto" and model_size(skeleton).parameters < LAYERWISE_PARAMETERS):
        return False, ""
    why = "" if able else f"the method trains, or its rank policy has to {asks} the whole model"
    why = why or (why_not_streamed(location, revision) if location else "")
    if not why and reads:
        try:
            find_blocks(skeleton)
        except NotStreamable as reason:
            why = str(reason)
    if why and asked == "layerwise":
        raise UserError(f"the model cannot be read layer by layer because {why}; use --memory whole, or auto")
    return not why, why


def open_model(mode: LoadMode, location: str, revision: str, device: str, scratch: Path) -> Any:
    """Load a model whole in float32, or open it to be read layer by layer.

    Args:
        mode: which.
        location, revision, device: as in `load_model`.
        scratch: where hidden states wait.
    """
    if mode.layerwise:
        return open_streamed(location, revision, device, scratch)
    return load_model(location, revision, "float32", device)


def memory_rows(modes: Mapping[str, LoadMode]) -> list[tuple[str, ...]]:
    """Return the rows under `COLUMNS`."""
    rows = []
    for title, mode in modes.items():
        sizes = (
            (0, 0, 0) if mode.peak is None else (mode.peak.usual or mode.peak.host, mode.peak.device, mode.peak.disk)
        )
        model = "layer by layer" if mode.layerwise else f"whole: {mode.why}" if mode.why else "whole"
        rows.append((title, model, *(f"{size / _GIB:.1f}" if size else "" for size in sizes)))
    return rows


def larger(known: LoadMode | None, mode: LoadMode) -> LoadMode:
    """Return which of two modes of stages with one name takes more: tables and verdicts show that one."""
    if known is None or known.peak is None or mode.peak is None:
        return known or mode
    sizes = [(peak.device, peak.usual or peak.host) for peak in (known.peak, mode.peak)]
    return known if sizes[0] >= sizes[1] else mode


def load_modes(plan: Plan) -> dict[str, LoadMode]:
    """Return how fits, compressions and rounding of a sweep get at their models, by a name for people.

    What trainings take is in `Plan.trainings`. Checkpoints that earlier stages have yet to write are judged by the
    sweep's model.
    """
    modes: dict[str, LoadMode] = {}
    location = plan.source.location if plan.at_hand.config else ""
    location_and_device = (location, plan.source.revision, plan.config.execution.memory, plan.device)
    for stage in plan.stages.values():
        if isinstance(stage, FitStage):
            name = f"fit {stage.spec.fit.get('factors', '')}".strip()
            method = create_method(stage.execution.method, stage.execution.options)
            passes, dtype = calibration(fitter(method), plan.skeleton, read_length(stage)), stage.spec.calibration_dtype
            mode = fit_mode(method, plan.skeleton, *location_and_device, passes, dtype, stage.execution.ranks)
            modes[name] = larger(modes.get(name), mode)
        elif isinstance(stage, CompressStage):
            method = create_method(stage.spec.method, stage.spec.options)
            name, passes = f"compress {stage.spec.method}", calibration(method, plan.skeleton, read_length(stage))
            mode = compress_mode(method, plan.skeleton, *location_and_device, tuple(stage.spec.ratios), passes)
            modes[name] = larger(modes.get(name), mode)
        elif isinstance(stage, QuantiseStage):
            width = own_dtype(plan.skeleton.config) if stage.spec.save_dtype == OWN else stage.spec.save_dtype
            name, passes, correction = f"quantise to {stage.spec.scheme.bits} bits", None, stage.spec.correction
            if correction is not None:
                name, width = f"{name} and correct by rank {correction.rank}", "float32"
                passes = calibration(corrector(correction), plan.skeleton, read_length(stage)) if stage.data else None
            mode = quantise_mode(stage.spec, plan.skeleton, width, plan.device, passes)
            modes[name] = larger(modes.get(name), mode)
    return modes


def check_plan(plan: Plan, pending: Collection[str]) -> None:
    """Refuse a sweep of which a training, or an evaluation of a model of full size, certainly does not fit.

    Raises:
        UserError: names the stage, what it needs, what is free and what makes it smaller.
    """
    for key in pending:
        stage = plan.stages[key]
        if stage.title in plan.refusals:
            raise UserError(plan.refusals[stage.title])
        if stage.title in plan.trainings and stage.train is not None:
            _, peak = plan.trainings[stage.title]
            check_training(peak, stage.title, stage.train, plan.device, plan.machine.device_bytes)
    evaluations = [stage for key in pending if isinstance(stage := plan.stages[key], EvaluateStage)]
    variants = {stage.spec.variant for stage in evaluations if _is_dense(plan, stage)}
    for variant, need in (evaluation_needs(plan) if variants else {}).items():
        if variant in variants:
            check_model(need, plan.source.name, plan.device)


def _is_dense(plan: Plan, evaluation: Stage) -> bool:
    made_by = plan.stages.get(evaluation.spec.inputs.model.partition("/")[0])
    return made_by is None or made_by.kind == "finetune"


def evaluation_needs(plan: Plan) -> dict[str, Footprint]:
    """Return what the evaluations of a sweep need for the uncompressed model, by the benchmark's variant."""
    footprints: dict[str, Footprint] = {}
    config, itemsize = plan.skeleton.config, DTYPES[plan.dtype].itemsize
    context = context_length(config)
    tokenizer = PlanTokenizer(plan.source) if plan.at_hand.tokenizer else None
    for stage in plan.stages.values():
        if isinstance(stage, EvaluateStage) and stage.spec.variant not in footprints:
            settings, benchmark = stage.settings, benchmarks.get(stage.spec.benchmark)()
            if tokenizer is None or counts_by_size(benchmark.name, plan.at_hand):
                longest = assumed_longest(benchmark, settings, context)
            else:
                asked = [benchmark.identity(settings), context]
                longest = tokenizer.counted(
                    "longest sequence", asked, partial(benchmark.longest_sequence, tokenizer, settings, context)
                )
            weights, token = plan.parameters * itemsize, token_bytes(config, itemsize)
            footprints[stage.spec.variant] = Footprint(weights, token, context, plan.dtype, longest)
    return footprints


def evaluation_rows(needs: Mapping[str, Footprint], device: str) -> list[tuple[str, ...]]:
    """Return the rows under `COLUMNS` of evaluations: weights, and keys and values of the longest sequence."""
    rows = []
    for variant, need in needs.items():
        least = need.weights + need.token * need.sequence
        sizes = (BASE_BYTES + least, 0) if device == "cpu" else (BASE_BYTES, least)
        title = f"evaluate {variant}, up to {need.sequence} tokens"
        rows.append((title, "whole", *(f"{size / _GIB:.1f}" if size else "" for size in sizes), ""))
    return rows
