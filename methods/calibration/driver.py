"""The driver for methods that read task data while fitting: what they read, and a warning where it is too little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from ...models.embedding import embedding_scale
from ..base import CalibrationData
from ..estimates import statistic_bytes
from ..fitted import Factors, Fitted
from ..groups import Group
from ..linalg.rows import factor_rows
from ..linalg.whitening import Root, root
from ..matrixwise import MatrixCompressor
from ..requirements import Requirements
from .collection import input_moments
from .frequencies import token_counts
from .moments import Moments
from .row_statistic import RowStatistic


class CalibratedCompressor(MatrixCompressor):
    """A per-matrix method that needs data.

    Args:
        samples: examples to read; None reads all. Which ones is decided by the seed of the run.
        batch_size: examples per forward pass; changes results by rounding only.
        calibration: task whose training texts are read (see ``bench tasks``); empty is the task of the run.
        length: longest example in tokens; None takes the task's own.
    """

    requires: ClassVar[Requirements] = Requirements(statistics=True)

    samples: int | None = Field(default=256, ge=1)
    batch_size: int = Field(default=8, ge=1)
    calibration: str = ""
    length: int | None = Field(default=None, ge=8)

    @property
    def requirements(self) -> Requirements:
        """Return what the method needs, with the task and the length of the examples that it reads."""
        return replace(super().requirements, calibration_task=self.calibration, calibration_length=self.length)

    def fit(self, model: nn.Module, data: CalibrationData | None, folder: Path | None = None) -> Fitted:
        """Decompose every group and note how much was read."""
        if data is None:
            raise ValueError(f"{self.name} needs task data")
        fitted = super().fit(model, data, folder)
        examples = tokens = 0
        for batch in data.batches(self.samples, self.batch_size):
            examples += len(batch["input_ids"])
            tokens += int(batch["attention_mask"].sum())
        fitted.meta["calibration"] = {"examples": examples, "tokens": tokens}
        widest = max(group.in_features for group in self.groups(model))
        if warnings := few_tokens(self.name, tokens, widest):
            fitted.meta["warnings"] = warnings
        return fitted


def few_tokens(name: str, tokens: int, widest: int) -> list[str]:
    """Return a warning where statistics were made of fewer tokens than the widest matrix has inputs, else nothing.

    Args:
        name: of what was calibrated.
        tokens: that were read.
        widest: inputs.
    """
    if tokens >= widest:
        return []
    return [
        f"{name} was calibrated on {tokens:,} tokens, fewer than the {widest:,} inputs of the widest "
        "matrix, so its statistics are noisy, and a matrix of second moments is singular; give it more samples"
    ]


class MomentCompressor(CalibratedCompressor):
    """A calibrated method whose statistic is the `Moments` of each group's input."""

    _last: tuple[Moments, Root] | None = PrivateAttr(default=None)

    grams: ClassVar[bool] = True
    """Whether second moments are needed; without them all layers are gathered in one pass."""

    @property
    def least_jitter(self) -> float:
        """Return the least jitter of the moments that weigh an embedding, see `whitening.root`."""
        return 0.0

    def collect(
        self, model: nn.Module, data: CalibrationData | None, groups: Sequence[Group]
    ) -> Iterator[tuple[Group, Any]]:
        """Yield each group with the moments of its (first member's) input."""
        if data is None:
            raise ValueError(f"{self.name} needs task data")
        readers = [group.reader for group in groups if group.reader]
        inputs = input_moments(model, readers, data, self.samples, self.batch_size, grams=self.grams)
        for group in groups:
            # `inputs` comes in the order of `readers`, so that only groups with a reader may take from it.
            moments = next(inputs)[1] if group.reader else None
            if group.embedding:
                counts = token_counts(data, group.out_features, self.samples, self.batch_size)
                yield group, RowStatistic(counts, embedding_scale(model.get_submodule(group.name)) or 1.0, moments)
            else:
                yield group, moments
        self._last = None

    def decompose_embedding(
        self, weight: Tensor, statistic: RowStatistic | None = None, rank: int | None = None
    ) -> Factors:
        """Weight each row by its token's frequency and, where a head is tied, the errors by what enters the head."""
        if statistic is None:
            raise ValueError(f"{self.name} needs the frequencies of tokens")
        moments = statistic.inputs
        inputs = None if moments is None else self.rooted(moments, lambda: moments.gram, weight, self.least_jitter)
        return factor_rows(weight, statistic.weights, inputs, rank)

    def rooted(self, moments: Moments, gram: Callable[[], Tensor], weight: Tensor, jitter: float = 0.0) -> Root:
        """Return `whitening.root` of a Gram matrix on the weight's device, made once for all readers of an input.

        Args:
            moments: of the input; the root is remembered until other moments come.
            gram: gives the (n, n) matrix to take the root of, made of those moments.
            weight: says the device.
            jitter: see `whitening.root`.
        """
        if self._last is None or self._last[0] is not moments:
            self._last = None  # its memory is free before more is taken
            factor = root(gram().to(weight.device, torch.float64), jitter)
            if moments.readers == 1:
                return factor
            self._last = moments, factor
        return self._last[1]


@statistic_bytes.register
def _(method: MomentCompressor, group: Group) -> int:
    """Return the bytes of a Gram matrix."""
    return 8 * group.in_features**2 if method.grams else 0


def pooled(moments: Sequence[Moments]) -> Moments:
    """Return the moments over all tokens of several layers' inputs."""
    return Moments(
        sum((m.gram for m in moments[1:]), moments[0].gram),
        sum((m.total for m in moments[1:]), moments[0].total),
        sum((m.absolute for m in moments[1:]), moments[0].absolute),
        sum(m.tokens for m in moments),
    )
