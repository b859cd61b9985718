"""The statistics of `moments` and `statistics` for a streamed model, gathered block by block with the same sums.

Input moments need one way forwards. Gradients need every block's input once more on the way back: inputs wait in memory
or on disk (`spill`), so many batches at a time that they take no more than `INPUTS_BYTES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...foundation.progress import track
from ...models.blocks import find_blocks
from ...models.streamed import weights_of
from ..base import CalibrationData
from .moments import GradientSums, Moments, MomentSums, Reached, token_loss
from .offload_cache import Spill
from .sequential import Batch, Walk
from .statistics import FisherSums, example_losses

INPUTS_BYTES = 64 << 30
"""Most disk and memory for the inputs of all blocks that wait for the way back."""


def walked_moments(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    grams: bool = True,
) -> Iterator[tuple[str, Moments]]:
    """Yield what `moments.input_moments` yields; only the blocks up to the last name wanted so far are held."""
    found: dict[str, Moments] = {}
    with _spill(model) as spill:
        walk = Walk(model, list(data.batches(samples, batch_size)), spill)
        parts = _moments_by_block(walk, names, grams)
        for name in names:
            while name not in found:
                found |= next(parts)
            yield name, found.pop(name)


def _moments_by_block(walk: Walk, names: Sequence[str], grams: bool) -> Iterator[dict[str, Moments]]:
    walk.enter()
    for number, block in enumerate(track(walk.blocks.names)):
        sums = MomentSums([name for name in names if walk.blocks.owner(name) == block], grams, stop=False)
        with torch.no_grad(), walk.block(block), sums.watching(walk.model):
            for index, batch in enumerate(walk.batches):
                sums.begin(batch["attention_mask"].to(walk.weights.device))
                output = walk.run(block, index, walk.hidden((number, index)))
                walk.spill.drop((number, index))
                walk.spill.put((number + 1, index), output)
        yield sums.found()
    sums = MomentSums([name for name in names if walk.blocks.owner(name) is None], grams)
    if sums.names:
        with torch.no_grad(), sums.watching(walk.model), walk.behind() as rest:
            for index, batch in enumerate(walk.batches):
                sums.begin(batch["attention_mask"].to(walk.weights.device))
                with contextlib.suppress(Reached):
                    rest(index, walk.hidden((len(walk.blocks.names), index)))
        yield sums.found()


def walked_fisher(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    axis: Literal["in", "out"] = "in",
) -> dict[str, Tensor]:
    """Return what `statistics.input_fisher` returns."""
    sums: dict[str | None, FisherSums] = {}

    def watch(walk: Walk, block: str | None, pass_back: Callable[[FisherSums], None]) -> None:
        inside = [name for name in names if walk.blocks.owner(name) == block]
        own = sums.setdefault(block, FisherSums(inside, axis))
        with own.watching(walk.model):
            pass_back(own)

    for walk in _back(model, data, samples, batch_size):
        _backwards(
            walk,
            watch,
            lambda own, batch: own.begin(len(batch["input_ids"])),
            lambda logits, batch: example_losses(logits, batch["labels"]).sum(),
        )
    found = {name: value for own in sums.values() for name, value in own.found().items()}
    return {name: found[name] for name in names if name in found}


def walked_gradients(
    model: nn.Module, names: Sequence[str], data: CalibrationData, samples: int | None, batch_size: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield what `moments.gradient_grams` yields; the matrices wait in a spill, as they come last block first."""
    with _spill(model) as grams:

        def watch(walk: Walk, block: str | None, pass_back: Callable[[GradientSums], None]) -> None:
            inside = [name for name in names if walk.blocks.owner(name) == block]
            before = {name: grams.take(name).to(walk.weights.device) for name in inside if grams.has(name)}
            own = GradientSums(inside, before)
            with own.watching(walk.model):
                pass_back(own)
            for name, gram in own.found().items():
                grams.put(name, gram)

        for walk in _back(model, data, samples, batch_size):
            _backwards(walk, watch, lambda own, batch: own.begin(batch["attention_mask"]), token_loss)
        for name in names:
            yield name, grams.take(name)


def _spill(model: nn.Module) -> Spill:
    weights = weights_of(model)
    return Spill(weights.scratch if weights else None)


def _back(model: nn.Module, data: CalibrationData, samples: int | None, batch_size: int) -> Iterator[Walk]:
    """Give walks over so many batches at a time that the inputs of all their blocks may wait."""
    width, blocks = model.get_input_embeddings().embedding_dim, len(find_blocks(model).names)  # type: ignore[operator]
    group: list[Batch] = []
    used = 0
    for batch in data.batches(samples, batch_size):
        size = 4 * batch["input_ids"].numel() * int(width) * (blocks + 1)
        if group and used + size > INPUTS_BYTES:
            with _spill(model) as spill:
                yield Walk(model, group, spill)
            group, used = [], 0
        group.append(batch)
        used += size
    if group:
        with _spill(model) as spill:
            yield Walk(model, group, spill)


def _backwards(
    walk: Walk,
    watch: Callable[[Walk, str | None, Callable[[Any], None]], None],
    begin: Callable[[Any, Batch], None],
    loss: Callable[[Tensor, Batch], Tensor],
) -> None:
    """Push the batches forwards without gradients, then their gradients backwards block by block.

    Args:
        walk: not entered yet.
        watch: called with the walk, a block (None for what is behind them) and what passes gradients back through it,
            which it calls with its sums in place.
        begin: starts a batch in the sums.
        loss: of logits and batch.
    """
    batches = [{key: value.to(walk.weights.device) for key, value in batch.items()} for batch in walk.batches]
    names = walk.blocks.names
    walk.enter()
    for number, block in enumerate(track(names)):
        with torch.no_grad(), walk.block(block):
            for index in range(len(batches)):
                walk.spill.put((number + 1, index), walk.run(block, index, walk.hidden((number, index))))

    def head(sums: Any) -> None:
        with walk.behind() as rest:
            for index, batch in enumerate(batches):
                begin(sums, batch)
                hidden = walk.hidden((len(names), index)).requires_grad_(True)
                with torch.enable_grad():
                    gradient = torch.autograd.grad(loss(rest(index, hidden).logits, batch), hidden)[0]
                walk.spill.put((len(names), index), gradient)

    def through(number: int) -> Callable[[Any], None]:
        def block(sums: Any) -> None:
            with walk.block(names[number]):
                for index, batch in enumerate(batches):
                    begin(sums, batch)
                    hidden = walk.hidden((number, index)).requires_grad_(True)
                    with torch.enable_grad():
                        output = walk.run(names[number], index, hidden)
                    gradient = torch.autograd.grad(output, hidden, walk.hidden((number + 1, index)))[0]
                    walk.spill.drop((number + 1, index))
                    walk.spill.put((number, index), gradient)

        return block

    watch(walk, None, head)
    for number in track(range(len(names) - 1, -1, -1)):
        watch(walk, names[number], through(number))
