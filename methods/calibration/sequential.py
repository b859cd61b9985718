"""Task data pushed through a streamed model one decoder block at a time, forwards and backwards.

The model's own code runs with its blocks left out, which tells what every block is given (masks, rotary positions) and
what happens behind the last. Then the blocks are loaded one after the other, float32, and each sees all batches. Layers
get the very inputs, and their outputs the very gradients, that they have in the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...models.blocks import Blocks, find_blocks, forwards, hidden_in
from ...models.streamed import empty, fill, loaded, weights_of
from .offload_cache import OffloadCache
from .precision import autocast

Batch = dict[str, Tensor]


class _Entered(Exception):
    """The last block has been reached; the rest of the forward pass would be wasted."""


class _Hidden:
    """Marks the hidden states among a block's arguments."""


class _Kept:
    """Marks a tensor that waits in the cache."""

    def __init__(self, key: tuple[str, int, int]) -> None:
        self.key = key


class SequentialCalibration:
    """Batches that are pushed through a streamed model block by block.

    Args:
        model: opened by `models.streamed.open_streamed`.
        batches: what is pushed through, see `CalibrationData`.
        cache: where hidden states wait between blocks.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], cache: OffloadCache) -> None:
        weights = weights_of(model)
        if weights is None:
            raise ValueError("only a streamed model can be read block by block")
        self.model, self.batches, self.cache, self.weights = model, batches, cache, weights
        self.blocks: Blocks = find_blocks(model)
        self._given: dict[tuple[str, int], tuple[Any, Any]] = {}

    @torch.no_grad()
    def enter(self) -> None:
        """Run what comes before the blocks; afterwards the first one's input waits as ``(0, batch)`` in the cache."""
        with self._outside():
            for index in range(len(self.batches)):
                with contextlib.suppress(_Entered):
                    # Tensors seen in a batch stay alive in that list: they are distinguished by identity.
                    self._around(index, partial(self._note, index, []))

    def _note(self, index: int, seen: list[Tensor], block: int, args: Any, kwargs: Any) -> Tensor:
        hidden = hidden_in(args, kwargs)
        if block == 0:
            self.cache.put((0, index), hidden)

        def keep(value: Any) -> Any:
            if value is hidden:
                return _Hidden()
            if isinstance(value, Tensor):
                position = next((position for position, other in enumerate(seen) if other is value), len(seen))
                key = ("given", index, position)
                if position == len(seen):
                    seen.append(value)
                    self.cache.put(key, value)
                return _Kept(key)
            if isinstance(value, dict):
                return {key: keep(part) for key, part in value.items()}
            return type(value)(map(keep, value)) if type(value) in (list, tuple) else value

        self._given[self.blocks.names[block], index] = keep(args), keep(kwargs)
        if block == len(self.blocks.names) - 1:
            raise _Entered
        return hidden

    def run(self, name: str, index: int, hidden: Tensor) -> Tensor:
        """Run one batch through a block whose weights are loaded.

        Args:
            name: the block.
            index: of the batch.
            hidden: (b, t, d), on the model's device.
        """

        def restore(value: Any) -> Any:
            if isinstance(value, _Hidden):
                return hidden
            if isinstance(value, _Kept):
                return self.cache.get(value.key).to(self.weights.device)
            if isinstance(value, dict):
                return {key: restore(part) for key, part in value.items()}
            return type(value)(map(restore, value)) if type(value) in (list, tuple) else value

        args, kwargs = map(restore, self._given[name, index])
        with autocast(self.weights.device):
            return self.blocks.unwrap(self.model.get_submodule(name)(*args, **kwargs))

    @contextmanager
    def block(self, name: str) -> Iterator[None]:
        """Have a block's weights loaded."""
        with loaded(self.model, name):
            yield

    @contextmanager
    def before(self) -> Iterator[Callable[[int], Tensor]]:
        """Give a function that runs what comes before the blocks, from the batch to the first block's input."""

        def run(index: int) -> Tensor:
            entering: list[Tensor] = []

            def stop(block: int, args: Any, kwargs: Any) -> Tensor:
                entering.append(hidden_in(args, kwargs))
                raise _Entered

            with contextlib.suppress(_Entered):
                self._around(index, stop)
            return entering[0]

        with self._outside():
            yield run

    @contextmanager
    def behind(self) -> Iterator[Callable[[int, Tensor], Any]]:
        """Give a function that runs what comes behind the blocks, from (batch, last block's output) to the output."""
        last = len(self.blocks.names) - 1

        def rest(index: int, hidden: Tensor) -> Any:
            return self._around(index, lambda block, args, kw: hidden if block == last else hidden_in(args, kw))

        with self._outside():
            yield rest

    def hidden(self, key: Any) -> Tensor:
        """Return waiting hidden states on the model's device."""
        return self.cache.get(key).to(self.weights.device)

    def _around(self, index: int, block: Callable[[int, Any, Any], Tensor]) -> Any:
        """Run the model on one batch with its blocks replaced by a function of (number, args, kwargs)."""

        def forward(number: int) -> Callable[..., Any]:
            return lambda *args, **kwargs: self.blocks.wrap(block(number, args, kwargs))

        batch, device = self.batches[index], self.weights.device
        replaced = {name: forward(number) for number, name in enumerate(self.blocks.names)}
        with forwards(self.model, replaced), autocast(device):
            return self.model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                use_cache=False,
            )

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """Load each module outside the blocks when it is first called; tied ones share their tensor."""
        loaded_parameters: list[tuple[nn.Module, str, nn.Parameter]] = []
        shared: dict[str, nn.Parameter] = {}

        def load(name: str) -> Callable[..., None]:
            return lambda module, _: loaded_parameters.extend(fill(self.weights, name, module, shared))

        handles = [
            module.register_forward_pre_hook(load(name), prepend=True)
            for name, module in self.model.named_modules()
            if self.blocks.owner(f"{name}.") is None and module._parameters
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            empty(loaded_parameters)
