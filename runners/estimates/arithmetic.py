"""What the stages of a plan compute, counted: the one arithmetic of all estimates, for CPUs and GPUs.

A forward pass costs 2 operations a token and entry of the decoder blocks' matrices, 4·t·(heads x head width) a layer
for attention over t tokens, and 2 an entry of the output head where logits are made; looking up an embedding is free.
Training costs three times that, four times with gradient checkpointing, which runs every forward pass twice. Basis
Selection trains through bases that are full at first; they are frozen, and what is frozen costs a third less, as it has
no gradient. What moves through memory counts beside the products: inputs and outputs of layers, logits that become
likelihoods in float32, weights for each generated token, an optimizer's moments. What is left out: data, and
starting engines (`seconds.estimate` adds vLLM's).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, cast

from ...evals.base import benchmarks
from ...evals.engines.base import BATCH_TOKENS
from ...methods.base import Compressor, create_method
from ...methods.correction import corrector
from ...methods.estimates import calibration_passes, fitter, statistic_bytes
from ...methods.groups import Group
from ...methods.matrixwise import MatrixCompressor
from ...methods.recoveries.base import create_recovery
from ...models.dtypes import OWN
from ...models.loading import DTYPES, own_dtype
from ...models.matrices import Matrix, head_name, matrices
from ...models.token_scores import block_rows
from ..data_spec import DataSpec
from ..graph import Plan
from ..specs import CompressStage, EvaluateStage, FitStage, QuantiseStage, RecoverStage, Stage
from .assumptions import CPU_SHARES, FULL_BASES, SEARCH_TOKENS
from .lengths import Lengths
from .memory import calibration, read_length
from .probe import eigen_operations, svd_operations

_OPTIMIZER_BYTES = 28  # an update reads weight, gradient and two moments in float32 and writes three of them
_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")  # of attention, whose inputs are not those of its other matrices


@dataclass(frozen=True)
class Work:
    """Floating-point operations by what limits their speed, and what comes beside them.

    Attributes:
        training: forward and backward passes.
        scoring: forward passes over whole sequences, in the evaluation's dtype.
        reading: passes over data for statistics, in float32.
        generation: forward passes over one token of each sequence.
        decomposition: SVDs, as `probe.svd_operations` counts.
        eigen: eigendecompositions in float64, as `probe.eigen_operations` counts.
        double: products in float64.
        moved: bytes that go through memory beside products.
        passes: forward passes of the whole model, each of which takes its time even for one token.
        traffic: bytes of checkpoints and factors, read and written.
        tokenizers: how often the tokenizer is loaded.
    """

    training: float = 0.0
    scoring: float = 0.0
    reading: float = 0.0
    generation: float = 0.0
    decomposition: float = 0.0
    eigen: float = 0.0
    double: float = 0.0
    moved: float = 0.0
    passes: float = 0.0
    traffic: float = 0.0
    tokenizers: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What a pass through a model is made of.

    Attributes:
        blocks: entries of the matrices inside the decoder blocks.
        head: entries of the output head.
        rest: other parameters, embeddings that are looked up among them.
        attention: heads x their width, summed over the layers.
        sides: inputs and outputs of the blocks' matrices, summed.
        vocabulary: tokens.
    """

    blocks: float
    head: float
    rest: float
    attention: float
    sides: float
    vocabulary: int

    def at(self, ratio: float, embeddings: bool) -> Sizes:
        """Return the sizes of the model compressed to a ratio, with or without its embedding and head."""
        if embeddings:
            return replace(self, blocks=self.blocks / ratio, head=self.head / ratio, rest=self.rest / ratio)
        # Only the blocks shrink; the hundredth keeps them positive where the rest takes the whole budget.
        whole = self.blocks + self.rest
        return replace(self, blocks=max(whole / ratio - self.rest, 0.01 * self.blocks))

    def forward(self, tokens: float, length: float, scored: float) -> float:
        """Return the operations of a forward pass over tokens in sequences of a length, with logits of some."""
        return 2.0 * self.blocks * tokens + 4.0 * length * self.attention * tokens + 2.0 * self.head * scored

    def moved(self, tokens: float, scored: float, width: int) -> float:
        """Return the bytes that the same pass moves beside its products, with numbers of some bytes."""
        return CPU_SHARES.copies * width * self.sides * tokens + CPU_SHARES.logit_bytes * self.vocabulary * scored


class Arithmetic:
    """Counts the work of a plan's stages."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.lengths = plan, Lengths(plan)
        self.ratios: dict[str, tuple[float, bool]] = {}
        self.methods: dict[str, str] = {}
        # Learning rates that were not chosen have no cell.
        for key, (ratio, spec) in plan.grid.items():
            self.ratios[key], self.methods[key] = (ratio, bool(spec.options.get("embeddings"))), spec.name
        for cell in plan.cells:
            later = [cell.stages[kind] for kind in ("recover", "quantise") if kind in cell.stages]
            keys = [*cell.evaluations.values(), *later]
            embeddings = bool(cell.method.options.get("embeddings"))
            self.ratios |= dict.fromkeys(keys, (cell.ratio, embeddings))
            self.methods |= dict.fromkeys(keys, cell.method.name)

    @cached_property
    def sizes(self) -> Sizes:
        """Of the uncompressed model."""
        skeleton, inside = cast(Any, self.plan.skeleton), self._inside
        config = skeleton.config.get_text_config()
        vocabulary = int(config.vocab_size)
        blocks = float(sum(matrix.parameters for matrix in inside))
        layers, heads = (int(getattr(config, name, None) or 1) for name in ("num_hidden_layers", "num_attention_heads"))
        hidden = int(skeleton.get_input_embeddings().weight.shape[-1])
        width = int(getattr(config, "head_dim", None) or hidden // heads)
        sides = float(sum(matrix.in_features + matrix.out_features for matrix in inside))
        rest = max(self.plan.parameters - blocks, 0.0)
        return Sizes(blocks, float(vocabulary * hidden), rest, layers * heads * width, sides, vocabulary)

    @cached_property
    def _inside(self) -> list[Matrix]:
        name = head_name(self.plan.skeleton)
        return [matrix for matrix in matrices(self.plan.skeleton, head=False) if matrix.name != name]

    def work(self, key: str) -> Work:
        """Return what a stage computes."""
        stage = self.plan.stages[key]
        # Every stage loads the tokenizer, and an engine of a process of its own that generates loads it too.
        generates = isinstance(stage, EvaluateStage) and benchmarks.get(stage.spec.benchmark)().is_generating(
            stage.settings
        )
        return replace(self._work(key, stage), tokenizers=2.0 if generates else 1.0)

    def _work(self, key: str, stage: Stage) -> Work:
        sizes = self.sizes.at(*self.ratios.get(key, (1.0, False)))
        if isinstance(stage, EvaluateStage):
            return self._evaluate(stage, sizes)
        if isinstance(stage, FitStage):
            return self._fit(stage)
        if isinstance(stage, CompressStage):
            return self._compress(stage)
        if isinstance(stage, QuantiseStage):
            work = Work(traffic=2.0 * self._width(stage) * (sizes.blocks + sizes.rest), moved=8.0 * sizes.blocks)
            if stage.spec.correction is None:
                return work
            return _sum([work, self._fitting(stage, corrector(stage.spec.correction))])
        share = 1.0
        if stage.kind == "recover" and create_method(self.methods[key], {}).requirements.trains:
            share = 0.5  # of the common budget, the other half is spent while compressing
        frozen = isinstance(stage, RecoverStage) and create_recovery(stage.spec.recovery).freezes
        traffic = 2.0 * self._width(stage) * (sizes.blocks + sizes.rest)
        work = self._training(stage, sizes, share, traffic, frozen, 0.0 if frozen else 1.0)
        return _sum([work, self._held_out(stage, sizes)]) if isinstance(stage, RecoverStage) else work

    def _held_out(self, stage: RecoverStage, sizes: Sizes) -> Work:
        """Return the work of the loss on what a tuned sweep holds out."""
        lengths, micro = self.lengths.training(stage.spec.data), stage.spec.train.micro_batch_size
        length = lengths.padded(micro)
        tokens = stage.spec.data.held_out * lengths.examples * length
        passes = stage.spec.data.held_out * lengths.examples / micro
        return Work(reading=sizes.forward(tokens, length, tokens), moved=sizes.moved(tokens, tokens, 4), passes=passes)

    def _width(self, stage: Stage) -> int:
        name = str(getattr(stage.spec, "save_dtype", OWN))
        own = own_dtype(cast(Any, self.plan.skeleton).config)
        return DTYPES[own if name == OWN else name].itemsize

    def _training(
        self, stage: Stage, sizes: Sizes, share: float, traffic: float, frozen: bool = False, updated: float = 1.0
    ) -> Work:
        """Return the work of a training.

        Args:
            stage: its settings and data.
            sizes: of what is trained.
            share: of the settings' steps.
            traffic: bytes read and written.
            frozen: whether a backward pass computes no gradients of the weights.
            updated: share of the parameters that the optimizer updates.
        """
        settings, data = stage.train, stage.data
        assert settings is not None
        assert data is not None
        lengths = self.lengths.training(data)
        extra = (stage.spec.extra_pruning_steps or 0) if isinstance(stage, CompressStage) else 0
        steps = settings.total_steps(lengths.examples) * share + extra
        micro = min(settings.micro_batch_size, settings.batch_size)
        examples = steps * settings.batch_size
        length = lengths.padded(micro)
        tokens = examples * length
        passes = (4.0 if settings.gradient_checkpointing else 3.0) - 1.0 * frozen
        return Work(
            training=passes * sizes.forward(tokens, length, tokens),
            moved=3.0 * sizes.moved(tokens, tokens, 4)
            + updated * _OPTIMIZER_BYTES * (sizes.blocks + sizes.rest) * steps,
            passes=3.0 * examples / micro,
            traffic=traffic,
        )

    def _evaluate(self, stage: EvaluateStage, sizes: Sizes) -> Work:
        lengths = self.lengths.evaluation(stage.spec.benchmark, stage.settings)
        width, entries = DTYPES[self.plan.dtype].itemsize, sizes.blocks + sizes.rest
        scored = lengths.requests if lengths.written else lengths.scored
        batch = min(stage.settings.batch_size, max(1, BATCH_TOKENS // max(1, round(lengths.mean))))
        passes = -(-lengths.requests // batch)
        steps, written = passes * lengths.written, lengths.requests * lengths.written
        length = lengths.mean + lengths.written / 2  # on average half of the completion is there already
        read_again = width * (sizes.blocks + sizes.head) * steps  # all weights, for each token of a batch
        if not lengths.written:  # the head, packed for its product and read, for each block of logits
            read_again = CPU_SHARES.packings * width * sizes.head * -(-scored // block_rows(self.plan.skeleton.config))
        return Work(
            scoring=sizes.forward(lengths.tokens_read, lengths.mean, scored),
            generation=sizes.forward(written, length, written),
            moved=sizes.moved(lengths.tokens_read, scored, width) + sizes.moved(written, written, width) + read_again,
            passes=passes + steps,
            traffic=width * entries,
        )

    def _fit(self, stage: FitStage) -> Work:
        method = fitter(create_method(stage.execution.method, stage.execution.options))
        own = DTYPES[own_dtype(cast(Any, self.plan.skeleton).config)].itemsize
        groups = self._groups(method)
        factors = sum(float(min(g.in_features, g.out_features) * (g.in_features + g.out_features)) for g in groups)
        return _sum([self._fitting(stage, method), Work(traffic=own * self.plan.parameters + 4.0 * factors)])

    def _fitting(self, stage: FitStage | QuantiseStage, method: Compressor) -> Work:
        """Return the work of decomposing all matrices, and of the passes through the examples that a stage reads."""
        groups = self._groups(method)
        whitened = isinstance(method, MatrixCompressor) and any(statistic_bytes(method, group) for group in groups)
        tokens = None if stage.spec.data is None else self._tokens_read(stage, stage.spec.data, method)
        work = _sum([_decomposition(group, whitened, tokens) for group in groups])
        if stage.spec.data is None:
            return work
        gradients = method.requirements.gradients
        moments = 1.0 if whitened else 0.0
        return _sum(
            [
                work,
                self._calibration_work(stage, stage.spec.data, method, 3.0 if gradients else 1.0, moments, gradients),
            ]
        )

    def _tokens_read(self, stage: Stage, data: DataSpec, method: Compressor) -> float:
        """Return the tokens that statistics are made of, padding not counted."""
        passes, lengths = calibration(method, self.plan.skeleton, read_length(stage)), self.lengths.training(data)
        return min(passes.samples, lengths.examples) * lengths.padded(1)

    def _calibration_work(
        self, stage: Stage, data: DataSpec, method: Compressor, times: float, moments: float, scores: bool = False
    ) -> Work:
        """Return the work of passes through the examples of a fit, Gram matrices of all inputs among it."""
        passes = calibration(method, self.plan.skeleton, read_length(stage))
        lengths = self.lengths.training(data)
        samples = min(passes.samples, lengths.examples)
        length = lengths.padded(passes.batch_size)
        tokens = samples * length
        scored = tokens if scores else 0.0  # a pass for statistics ends at the last input, before the head
        return Work(
            reading=times * self.sizes.forward(tokens, length, scored),
            double=moments * tokens * self._moments(),
            moved=times * self.sizes.moved(tokens, scored, 4),
            passes=times * samples / passes.batch_size,
        )

    def _groups(self, method: Compressor) -> list[Group]:
        if isinstance(method, MatrixCompressor):
            return method.groups(self.plan.skeleton)
        return [Group((matrix,)) for matrix in method.targets(self.plan.skeleton)]

    def _moments(self) -> float:
        """Return the operations of a token's share of all Gram matrices: half of x xᵀ for each input of a layer."""
        inputs = set()
        for matrix in self._inside:
            parent, _, own = matrix.name.rpartition(".")
            inputs.add((parent, own if own in _OUTPUTS else "", matrix.in_features))
        return sum(float(width) ** 2 for *_, width in inputs)

    def _compress(self, stage: CompressStage) -> Work:
        method = create_method(stage.spec.method, stage.spec.options)
        embeddings = bool(getattr(method, "embeddings", False))
        sizes = [self.sizes.at(ratio, embeddings) for ratio in stage.spec.ratios]
        parameters = [self.plan.parameters, *(size.blocks + size.rest for size in sizes)]
        traffic = self._width(stage) * sum(parameters)
        if method.requirements.trains:
            # Half of the common budget, through frozen bases that fall from full rank to the ratio's.
            blocks = (FULL_BASES * self.sizes.blocks + sizes[-1].blocks) / 2
            return self._training(stage, replace(self.sizes, blocks=blocks), 0.5, traffic, frozen=True)
        work = Work(traffic=traffic, moved=4.0 * parameters[0])
        passes = calibration_passes(method)
        if passes and stage.spec.data is not None:
            # For each ratio half of x̂ x̂ᵀ, all of (x - x̂) x̂ᵀ, and the decompositions that others keep from a fit.
            tokens = self._tokens_read(stage, stage.spec.data, method)
            parts = [_decomposition(group, True, tokens) for group in self._groups(method)]
            parts.append(self._calibration_work(stage, stage.spec.data, method, passes, 3.0))
            return _sum([work, *parts * len(sizes)])
        search = self.sizes.forward(SEARCH_TOKENS, 128, SEARCH_TOKENS) if method.requirements.searches else 0.0
        return replace(work, reading=search)


def _decomposition(group: Group, whitened: bool, tokens: float | None) -> Work:
    """Return the work of decomposing one matrix in full, by `linalg.svd`, `whiten` or `factor_rows`.

    Args:
        group: the matrix.
        whitened: whether it is weighted by second moments of its inputs.
        tokens: that these are sums over; None where there are none.
    """
    m, n = group.out_features, group.in_features
    side, longer = min(m, n), max(m, n)
    if group.embedding:
        return Work(double=4.0 * m * n**2, eigen=eigen_operations(n), moved=24.0 * m * n)
    if not whitened:
        return Work(decomposition=svd_operations(m, n), moved=8.0 * m * n)
    products = 2.0 * m * n**2 + 2.0 * side**2 * longer + 2.0 * side * m * n + n**3 / 3
    # Fewer tokens than inputs leave a singular matrix, so that `left_vectors` ends with an SVD in float64.
    singular = 2.0 * svd_operations(m, n) if tokens is not None and tokens < n else 0.0
    return Work(double=products, eigen=eigen_operations(side), decomposition=singular, moved=24.0 * (m * n + n * n))


def _sum(parts: list[Work]) -> Work:
    return Work(**{field.name: sum((getattr(part, field.name) for part in parts), 0.0) for field in fields(Work)})
