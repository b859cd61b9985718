"""Statistics of a streamed model, collected block by block with the sums of `moments` and `fisher`.

Input moments need one forward pass. Gradients need every block's input once more in the backward pass: inputs wait in
memory or on disk (`offload_cache`), so many batches at a time that they take no more than `INPUTS_BYTES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...foundation.progress import track
from ...models.blocks import find_blocks
from ...models.streamed import weights_of
from ..base import CalibrationData
from .fisher import FisherSums
from .logit_batches import logit_batches, vocabulary_of
from .moments import GradientRule, GradientSums, Moments, MomentSums, Reached, token_loss
from .offload_cache import OffloadCache
from .sequential import Batch, SequentialCalibration
from .statistics import example_losses

INPUTS_BYTES = 64 << 30
"""Most disk and memory for the inputs of all blocks that wait for the way back."""


def input_moments(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    grams: bool = True,
) -> Iterator[tuple[str, Moments]]:
    """Yield what `collection.input_moments` yields; only the blocks up to the last name wanted so far are held."""
    moments: dict[str, Moments] = {}
    with _offload_cache(model) as cache:
        calibration = SequentialCalibration(model, list(data.batches(samples, batch_size)), cache)
        parts = _moments_by_block(calibration, names, grams)
        for name in names:
            while name not in moments:
                moments |= next(parts)
            yield name, moments.pop(name)


def _moments_by_block(
    calibration: SequentialCalibration, names: Sequence[str], grams: bool
) -> Iterator[dict[str, Moments]]:
    calibration.enter()
    owners = [calibration.blocks.owner(name) for name in names]
    last = calibration.blocks.names[-1] if None not in owners else ""  # its output is not needed
    for number, block in enumerate(track(calibration.blocks.names, unit="blocks")):
        inside = [name for name, owner in zip(names, owners, strict=True) if owner == block]
        sums = MomentSums(inside, grams, stop=block == last)
        with torch.no_grad(), calibration.block(block), sums.watching(calibration.model):
            for index, batch in enumerate(calibration.batches):
                sums.begin(batch["attention_mask"].to(calibration.weights.device))
                hidden = calibration.hidden((number, index))
                calibration.cache.drop((number, index))
                with contextlib.suppress(Reached):
                    calibration.cache.put((number + 1, index), calibration.run(block, index, hidden))
        yield sums.result()
    sums = MomentSums([name for name, owner in zip(names, owners, strict=True) if owner is None], grams)
    if sums.names:
        with torch.no_grad(), sums.watching(calibration.model), calibration.behind() as rest:
            for index, batch in enumerate(calibration.batches):
                sums.begin(batch["attention_mask"].to(calibration.weights.device))
                with contextlib.suppress(Reached):
                    rest(index, calibration.hidden((len(calibration.blocks.names), index)))
        yield sums.result()


def input_fisher(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    axis: Literal["in", "out"] = "in",
) -> dict[str, Tensor]:
    """Return what `collection.input_fisher` returns."""
    sums: dict[str | None, FisherSums] = {}

    def watch(calibration: SequentialCalibration, block: str | None, pass_back: Callable[[FisherSums], None]) -> None:
        inside = [name for name in names if calibration.blocks.owner(name) == block]
        own = sums.setdefault(block, FisherSums(inside, axis))
        with own.watching(calibration.model, calibration.cache):
            pass_back(own)

    looked_up = any(isinstance(model.get_submodule(name), nn.Embedding) for name in names)
    for calibration in _batch_groups(model, data, samples, batch_size):
        _backwards(
            calibration,
            watch,
            lambda own, batch: own.begin(len(batch["input_ids"])),
            lambda logits, batch: example_losses(logits, batch["labels"]).sum(),
            (lambda own, batch: None) if looked_up else None,  # the head's pass has counted these examples
        )
    means = {name: value for own in sums.values() for name, value in own.result().items()}
    return {name: means[name] for name in names if name in means}


def gradient_grams(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    rule: GradientRule,
    diagonal: Collection[str],
) -> Iterator[tuple[str, Tensor]]:
    """Yield what `collection.gradient_grams` yields; matrices wait in a cache, as the last block comes first."""
    looked_up = any(isinstance(model.get_submodule(name), nn.Embedding) for name in names)

    def begin(own: GradientSums, batch: Batch) -> None:
        own.begin(batch["attention_mask"])

    with _offload_cache(model) as grams:

        def watch(
            calibration: SequentialCalibration, block: str | None, pass_back: Callable[[GradientSums], None]
        ) -> None:
            inside = [name for name in names if calibration.blocks.owner(name) == block]
            # Each group of batches goes on with the sums of those before it.
            before = {name: grams.take(name).to(calibration.weights.device) for name in inside if grams.has(name)}
            own = GradientSums(inside, before, rule, diagonal)
            with own.watching(calibration.model):
                pass_back(own)
            for name, gram in own.result().items():
                grams.put(name, gram)

        for calibration in _batch_groups(model, data, samples, batch_size):
            _backwards(calibration, watch, begin, token_loss, begin if looked_up else None)
        for name in names:
            yield name, grams.take(name)


def _offload_cache(model: nn.Module) -> OffloadCache:
    weights = weights_of(model)
    return OffloadCache(weights.scratch if weights else None)


def _batch_groups(
    model: nn.Module, data: CalibrationData, samples: int | None, batch_size: int
) -> Iterator[SequentialCalibration]:
    """Give the batches so many at a time that the inputs of all blocks fit into `INPUTS_BYTES`."""
    width, blocks = model.get_input_embeddings().embedding_dim, len(find_blocks(model).names)  # type: ignore[operator]
    group: list[Batch] = []
    used = 0
    for batch in logit_batches(data.batches(samples, batch_size), vocabulary_of(model)):
        # float32 states before each block and after the last.
        size = 4 * batch["input_ids"].numel() * int(width) * (blocks + 1)
        if group and used + size > INPUTS_BYTES:
            with _offload_cache(model) as cache:
                yield SequentialCalibration(model, group, cache)
            group, used = [], 0
        group.append(batch)
        used += size
    if group:
        with _offload_cache(model) as cache:
            yield SequentialCalibration(model, group, cache)


def _backwards(
    calibration: SequentialCalibration,
    watch: Callable[[SequentialCalibration, str | None, Callable[[Any], None]], None],
    begin: Callable[[Any, Batch], None],
    loss: Callable[[Tensor, Batch], Tensor],
    begin_lookup: Callable[[Any, Batch], None] | None = None,
) -> None:
    """Push the batches forwards without gradients, then their gradients backwards block by block.

    Args:
        calibration: not entered yet.
        watch: called with the calibration, a block (None for what is behind them) and a function that passes gradients
            back through it, which it calls with its sums in place.
        begin: starts a batch in the sums.
        loss: of logits and batch.
        begin_lookup: as ``begin``, for gradients that go back through what comes before the blocks, to the rows that
            are looked up; None ends before it.
    """
    batches = [
        {key: value.to(calibration.weights.device) for key, value in batch.items()} for batch in calibration.batches
    ]
    names = calibration.blocks.names
    calibration.enter()
    for number, block in enumerate(track(names, unit="blocks")):
        with torch.no_grad(), calibration.block(block):
            for index in range(len(batches)):
                calibration.cache.put(
                    (number + 1, index), calibration.run(block, index, calibration.hidden((number, index)))
                )

    def head(sums: Any) -> None:
        with calibration.behind() as rest:
            for index, batch in enumerate(track(batches, unit="batches through the head")):
                begin(sums, batch)
                hidden = calibration.hidden((len(names), index)).requires_grad_(True)
                with torch.enable_grad():
                    gradient = torch.autograd.grad(loss(rest(index, hidden).logits, batch), hidden)[0]
                # In place of the states that it is the gradient of, which are not read again; so in `through`.
                calibration.cache.put((len(names), index), gradient)

    def through(number: int) -> Callable[[Any], None]:
        def block(sums: Any) -> None:
            with calibration.block(names[number]):
                for index, batch in enumerate(batches):
                    begin(sums, batch)
                    hidden = calibration.hidden((number, index)).requires_grad_(True)
                    with torch.enable_grad():
                        output = calibration.run(names[number], index, hidden)
                    gradient = torch.autograd.grad(output, hidden, calibration.hidden((number + 1, index)))[0]
                    calibration.cache.drop((number + 1, index))
                    calibration.cache.put((number, index), gradient)

        return block

    watch(calibration, None, head)
    for number in track(range(len(names) - 1, -1, -1), unit="blocks on the way back"):
        watch(calibration, names[number], through(number))

    def lookup(sums: Any) -> None:  # the embedding's hook lets its rows require the gradient; no weight does
        assert begin_lookup is not None
        with calibration.before() as run:
            for index, batch in enumerate(batches):
                begin_lookup(sums, batch)
                with torch.enable_grad():
                    hidden = run(index)
                torch.autograd.backward(hidden, calibration.hidden((0, index)))

    if begin_lookup is not None:
        watch(calibration, None, lookup)
