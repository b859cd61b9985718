"""What the stages of a plan compute, counted: the one arithmetic of all estimates, for CPUs and GPUs.

Training costs 6 floating-point operations a parameter and token, 8 with gradient checkpointing, which runs every
forward pass twice; scoring and generation 2. A model compressed to a ratio has 1/ratio of the parameters. Basis
Selection trains through bases that are full at first; they are frozen, and what is frozen costs 2 less, as it has no
gradient. A full decomposition of an (m, n) matrix costs about 20·m·n·min(m, n). What is left out: attention scores,
data, starting engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from ...methods.base import Compressor, create_method
from ...methods.estimates import fitter
from ...methods.matrixwise import MatrixCompressor
from ...models.dtypes import OWN
from ...models.loading import DTYPES, own_dtype
from ..graph import Plan
from ..specs import CompressStage, EvaluateStage, FitStage, Stage
from .assumptions import FULL_BASES, SEARCH_TOKENS
from .lengths import Lengths
from .memory import calibration, read_length


@dataclass(frozen=True)
class Work:
    """Floating-point operations by what limits their speed, and what comes beside them.

    Attributes:
        training: forward and backward passes.
        scoring: forward passes over whole sequences, in the evaluation's dtype.
        reading: passes over data for statistics, in float32.
        generation: forward passes over one token of each sequence.
        decomposition: SVDs and eigendecompositions.
        logits: scores over the vocabulary that become likelihoods.
        passes: forward passes of the whole model, each of which takes its time even for one token.
        traffic: bytes of checkpoints and factors, read and written.
    """

    training: float = 0.0
    scoring: float = 0.0
    reading: float = 0.0
    generation: float = 0.0
    decomposition: float = 0.0
    logits: float = 0.0
    passes: float = 0.0
    traffic: float = 0.0


class Arithmetic:
    """Counts the work of a plan's stages."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.lengths = plan, Lengths(plan)
        self.vocabulary = int(cast(Any, plan.skeleton).config.get_text_config().vocab_size)
        self.ratios: dict[str, float] = {}
        self.methods: dict[str, str] = {}
        for cell in plan.cells:
            keys = [*cell.evaluations.values(), *([cell.stages["recover"]] if "recover" in cell.stages else [])]
            self.ratios |= dict.fromkeys(keys, cell.ratio)
            self.methods |= dict.fromkeys(keys, cell.method.name)

    def work(self, key: str) -> Work:
        """Return what a stage computes."""
        stage = self.plan.stages[key]
        size = self.plan.parameters / self.ratios.get(key, 1.0)
        if isinstance(stage, EvaluateStage):
            return self._evaluate(stage, size)
        if isinstance(stage, FitStage):
            return self._fit(stage)
        if isinstance(stage, CompressStage):
            return self._compress(stage)
        share = 1.0
        if stage.kind == "recover" and create_method(self.methods[key], {}).requirements.trains:
            share = 0.5  # of the common budget, the other half is spent while compressing
        return self._training(stage, size, share, 2.0 * self._width(stage) * size)

    def _width(self, stage: Stage) -> int:
        name = str(getattr(stage.spec, "save_dtype", OWN))
        own = own_dtype(cast(Any, self.plan.skeleton).config)
        return DTYPES[own if name == OWN else name].itemsize

    def _training(self, stage: Stage, entries: float, share: float, traffic: float, frozen: bool = False) -> Work:
        settings, data = stage.train, stage.data
        assert settings is not None
        assert data is not None
        lengths = self.lengths.training(data)
        extra = (stage.spec.extra_pruning_steps or 0) if isinstance(stage, CompressStage) else 0
        steps = settings.total_steps(lengths.examples) * share + extra
        micro = min(settings.micro_batch_size, settings.batch_size)
        examples = steps * settings.batch_size
        per_token = (8.0 if settings.gradient_checkpointing else 6.0) - 2.0 * frozen
        operations = per_token * entries * examples * lengths.padded(micro)
        logits = 3.0 * examples * lengths.padded(micro) * self.vocabulary
        return Work(training=operations, logits=logits, passes=3.0 * examples / micro, traffic=traffic)

    def _evaluate(self, stage: EvaluateStage, size: float) -> Work:
        lengths = self.lengths.evaluation(stage.spec.benchmark, stage.settings)
        batch = stage.settings.batch_size
        steps = -(-lengths.requests // batch) * (lengths.written + 1)
        traffic = size * DTYPES[self.plan.dtype].itemsize
        written = lengths.requests * lengths.written
        logits = 0.0 if lengths.written else lengths.read * self.vocabulary
        return Work(
            scoring=2.0 * size * lengths.read,
            generation=2.0 * size * written,
            logits=logits,
            passes=steps,
            traffic=traffic,
        )

    def _fit(self, stage: FitStage) -> Work:
        method = fitter(create_method(stage.execution.method, stage.execution.options))
        operations, entries = self._decompositions(method)
        own = DTYPES[own_dtype(cast(Any, self.plan.skeleton).config)].itemsize
        traffic = own * self.plan.parameters + 4.0 * entries
        if stage.spec.data is None:
            return Work(decomposition=operations, traffic=traffic)
        read = calibration(method, self.plan.skeleton, read_length(stage))
        lengths = self.lengths.training(stage.spec.data)
        samples = min(read.samples, lengths.examples)
        per_token = 6.0 if method.requirements.gradients else 2.0
        tokens = samples * lengths.padded(read.batch_size)
        return Work(
            reading=per_token * self.plan.parameters * tokens,
            decomposition=operations,
            passes=per_token / 2 * samples / read.batch_size,
            traffic=traffic,
        )

    def _decompositions(self, method: Compressor) -> tuple[float, float]:
        """Return the operations of decomposing all matrices of a method in full, and the entries of the factors."""
        if isinstance(method, MatrixCompressor):
            shapes = [(group.out_features, group.in_features) for group in method.groups(self.plan.skeleton)]
        else:
            shapes = [(matrix.out_features, matrix.in_features) for matrix in method.targets(self.plan.skeleton)]
        return sum(20.0 * m * n * min(m, n) for m, n in shapes), sum(float(min(m, n) * (m + n)) for m, n in shapes)

    def _compress(self, stage: CompressStage) -> Work:
        method = create_method(stage.spec.method, stage.spec.options)
        sizes = [self.plan.parameters / ratio for ratio in stage.spec.ratios]
        traffic = self._width(stage) * (self.plan.parameters + sum(sizes))
        if method.requirements.trains:
            # Half of the common budget, through frozen bases that fall from full rank to the ratio's.
            entries = (FULL_BASES * self.plan.parameters + sizes[-1]) / 2
            return self._training(stage, entries, 0.5, traffic, frozen=True)
        search = 2.0 * self.plan.parameters * SEARCH_TOKENS if method.requirements.searches else 0.0
        return Work(reading=search, traffic=traffic)
