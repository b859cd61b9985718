"""Task data pushed through a model block by block, as it was and as it is after compressing what comes before."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...foundation.errors import UserError
from ...foundation.progress import track
from ...models.blocks import Blocks, find_blocks, forwards, hidden_in
from ...models.streamed import NotStreamable
from .moments import Reached, add_gram
from .offload_cache import OffloadCache

Batch = dict[str, Tensor]
Replace = Callable[[str, Tensor, Tensor], None]
"""Called with a layer's name, Σ (x - x̂) x̂ᵀ and Σ x̂ x̂ᵀ (n, n), float64; may put another layer into the model."""


class TwoStreams:
    """The dense model's hidden states and those of the model compressed so far, side by side.

    Args:
        model: in memory; its blocks are compressed one after the other.
        batches: ``input_ids`` and ``attention_mask`` (b, t).
        shifted: whether x̂ is what enters a layer in the model compressed so far; else x̂ = x. A refinement reads the
            states of the model compressed so far in either case.

    Raises:
        UserError: the model does not call its blocks one after the other.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], shifted: bool) -> None:
        try:
            self.blocks: Blocks = find_blocks(model)
        except NotStreamable as error:
            raise UserError(f"aa compresses block by block, and {error}; use svd-llm for this model") from error
        self.model, self.shifted = model, shifted
        self._two = shifted  # whether states of the compressed model are computed beside the dense ones
        self.device = next(model.parameters()).device
        self.batches = [{key: value.to(self.device) for key, value in batch.items()} for batch in batches]
        self._given: dict[tuple[str, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}

    @torch.no_grad()
    def replace_layers(
        self,
        names: Sequence[str],
        replace: Replace,
        refine: Callable[[nn.Module, Pairs], None] | None = None,
        replace_embedding: Callable[[], None] | None = None,
    ) -> None:
        """Go through the layers in the order in which the model calls them, those with one input together.

        Args:
            names: dotted names of the linear layers that are replaced.
            replace: called once a layer.
            refine: called with each block when its layers are replaced, and its inputs in the model compressed so far
                and target outputs.
            replace_embedding: called when the dense stream has entered the first block; the other enters after it.
        """
        training = self.model.training
        self.model.eval()
        self._two = self.shifted or refine is not None
        try:
            with OffloadCache() as cache:
                self._enter("dense", cache)
                if replace_embedding is not None:
                    replace_embedding()
                    if self._two:
                        self._enter("shifted", cache)
                elif self._two:
                    # Nothing before the blocks has changed, so both streams enter them with the same states.
                    for index in range(len(self.batches)):
                        cache.put(("shifted", index), cache.get(("dense", index)))
                for block in track(self.blocks.names, unit="blocks"):
                    self._block(block, [name for name in names if name.startswith(f"{block}.")], cache, replace)
                    if refine is not None:
                        refine(self.model.get_submodule(block), Pairs(self, block, cache))
                    self._advance(block, cache)
                outside = [name for name in names if self.blocks.owner(name) is None]
                if outside:
                    self._outside(outside, cache, replace)
        finally:
            self.model.train(training)
            self._given.clear()

    def _enter(self, stream: str, cache: OffloadCache) -> None:
        last = self.blocks.names[-1]

        def note(name: str, index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden = hidden_in(args, kwargs)
                cache.put((stream, index), hidden)
                rest = args[1:] if args else ()
                self._given[name, index] = rest, {k: v for k, v in kwargs.items() if k != "hidden_states"}
                if name == last:
                    raise Reached
                # Blocks are skipped: only what they are given beside hidden states (masks, positions) is needed.
                return self.blocks.wrap(hidden)

            return forward

        for index in range(len(self.batches)):
            with contextlib.suppress(Reached), forwards(self.model, {n: note(n, index) for n in self.blocks.names}):
                self._call(index)

    def _call(self, index: int) -> Any:
        batch = self.batches[index]
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    def run(self, block: nn.Module, name: str, index: int, hidden: Tensor) -> Tensor:
        """Run a batch through a block, or a copy of it, with what the model gives it beside the hidden states."""
        args, kwargs = self._given[name, index]
        return self.blocks.unwrap(block(hidden, *args, **kwargs))

    def hidden(self, stream: str, index: int, cache: OffloadCache) -> Tensor:
        """Return a batch's hidden states before the block that is being done."""
        return cache.get((stream if self._two else "dense", index)).to(self.device)

    def _block(self, name: str, names: list[str], cache: OffloadCache, replace: Replace) -> None:
        module = self.model.get_submodule(name)
        # The dense stream needs this block as it was while its layers are replaced one after the other.
        self._dense = copy.deepcopy(module)
        inside = [layer.removeprefix(f"{name}.") for layer in names]
        # One step after the other, because x̂ of a layer depends on the layers of this block that were just replaced.
        for step in self._steps(name, inside, cache):

            def inputs(block: nn.Module, stream: str, index: int, layer: str = step[0]) -> Tensor:
                with torch.no_grad():
                    return first_input(
                        block, layer, lambda: self.run(block, name, index, self.hidden(stream, index, cache))
                    )

            shift, gram = self._sums(
                partial(inputs, self._dense, "dense"), partial(inputs, module, "shifted") if self.shifted else None
            )
            for layer in step:
                replace(f"{name}.{layer}", shift, gram)

    def _steps(self, name: str, inside: Sequence[str], cache: OffloadCache) -> list[list[str]]:
        """Return the layers by common input, in the order of their calls."""
        # Inputs stay alive in this list: layers share one if they were given the same object.
        calls: list[tuple[Tensor, list[str]]] = []

        def hook(layer: str) -> Callable[..., None]:
            def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                for given, layers in calls:
                    if given is args[0]:
                        layers.append(layer)
                        return
                calls.append((args[0], [layer]))

            return see

        handles = [self._dense.get_submodule(layer).register_forward_pre_hook(hook(layer)) for layer in inside]
        try:
            self.run(self._dense, name, 0, self.hidden("dense", 0, cache))
        finally:
            for handle in handles:
                handle.remove()
        return [layers for _, layers in calls]

    def _sums(self, dense: Callable[[int], Tensor], shifted: Callable[[int], Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return Σ (x - x̂) x̂ᵀ and Σ x̂ x̂ᵀ over all tokens but padding."""
        shift = gram = torch.zeros(0)
        for index, batch in enumerate(self.batches):
            mask = batch["attention_mask"].reshape(-1).bool()
            x = dense(index).reshape(len(mask), -1)[mask]
            other = x if shifted is None else shifted(index).reshape(len(mask), -1)[mask]
            if not len(gram):
                size = (x.shape[1], x.shape[1])
                shift, gram = (torch.zeros(size, dtype=torch.float64, device=x.device) for _ in range(2))
            add_gram(gram, other)
            if shifted is not None:
                shift += (x.double() - other.double()).T @ other.double()
        return shift, gram.triu() + gram.triu(1).T

    def _advance(self, name: str, cache: OffloadCache) -> None:
        for index in range(len(self.batches)):
            streams = [("dense", self._dense)]
            streams += [("shifted", self.model.get_submodule(name))] if self._two else []
            for stream, block in streams:
                cache.put((stream, index), self.run(block, name, index, self.hidden(stream, index, cache)))

    def _outside(self, names: Sequence[str], cache: OffloadCache, replace: Replace) -> None:
        last = self.blocks.names[-1]

        def inputs(layer: str, stream: str, index: int) -> Tensor:
            hidden = self.hidden(stream, index, cache)

            def forward(name: str) -> Callable[..., Any]:
                return lambda *args, **kwargs: self.blocks.wrap(hidden if name == last else hidden_in(args, kwargs))

            with forwards(self.model, {name: forward(name) for name in self.blocks.names}):
                return first_input(self.model, layer, lambda: self._call(index))

        for layer in names:
            shift, gram = self._sums(
                partial(inputs, layer, "dense"), partial(inputs, layer, "shifted") if self.shifted else None
            )
            replace(layer, shift, gram)


class Pairs:
    """What a compressed block is given, and what the dense one makes of what it was given.

    Args:
        streams: of the model.
        name: the block.
        cache: of the streams.
    """

    def __init__(self, streams: TwoStreams, name: str, cache: OffloadCache) -> None:
        self.streams, self.name, self._cache = streams, name, cache
        for index in range(len(streams.batches)):
            hidden = streams.hidden("dense", index, cache)
            cache.put(("target", index), streams.run(streams._dense, name, index, hidden))

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield each batch's number, attention mask (b, t), input and target output (b, t, d)."""
        for index, batch in enumerate(self.streams.batches):
            target = self._cache.get(("target", index)).to(self.streams.device)
            yield index, batch["attention_mask"], self.streams.hidden("shifted", index, self._cache), target

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """Run a batch through a block."""
        return self.streams.run(block, self.name, index, hidden)


def first_input(module: nn.Module, layer: str, run: Callable[[], Any]) -> Tensor:
    """Return the input of a layer inside a module during a run, which ends there."""
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise Reached

    handle = module.get_submodule(layer).register_forward_pre_hook(see)
    try:
        with contextlib.suppress(Reached):
            run()
    finally:
        handle.remove()
    return seen[0].detach()
