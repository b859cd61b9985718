"""The decoder blocks of a model, found by running its code around them: what enters a block, and what it hands on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .streamed import NotStreamable


@dataclass(frozen=True)
class Blocks:
    """The blocks that a model calls one after the other, each on exactly what the one before returned.

    Attributes:
        names: dotted, in the order of the calls.
        in_tuple: whether a block returns a tuple that starts with the hidden states.
    """

    names: tuple[str, ...]
    in_tuple: bool

    def owner(self, module: str) -> str | None:
        """Return the block that a module lies in, or None."""
        return next((name for name in self.names if module.startswith(f"{name}.")), None)

    def wrap(self, hidden: Tensor) -> Any:
        """Return hidden states as a block does."""
        return (hidden, None) if self.in_tuple else hidden

    @staticmethod
    def unwrap(output: Any) -> Tensor:
        """Return the hidden states in what a block returned."""
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden


def hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among a block's arguments: the first one, or ``hidden_states``."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


@contextmanager
def forwards(model: nn.Module, replaced: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Let modules compute something else for a while; their hooks and attributes stay."""
    modules = [model.get_submodule(name) for name in replaced]
    try:
        for module, forward in zip(modules, replaced.values(), strict=True):
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def find_blocks(model: nn.Module) -> Blocks:
    """Find the decoder blocks of a model whose parameters may be on the meta device.

    The model's code runs once on four tokens with the blocks left out. It must call every item of its largest
    ``nn.ModuleList`` once and in order, on the very tensor that the one before returned; nothing else that a block is
    given, and nothing in the logits except the last block's output, may depend on hidden states.

    Raises:
        NotStreamable: the model is built in another way.
    """
    lists = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    if not lists:
        raise NotStreamable(f"{type(model).__name__} has no list of blocks")
    name = max(lists, key=lambda key: lists[key])
    names = tuple(f"{name}.{index}" for index in range(len(model.get_submodule(name))))  # type: ignore[arg-type]
    failed = ""
    for in_tuple in (False, True):
        try:
            if _called_in_turn(model, Blocks(names, in_tuple)):
                return Blocks(names, in_tuple)
        except Exception as error:  # whatever a model's own code raises on being run without its blocks
            failed = f" ({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''})"
    raise NotStreamable(
        f"{type(model).__name__} does not call its blocks one after the other on the hidden states alone{failed}"
    )


def _called_in_turn(model: nn.Module, blocks: Blocks) -> bool:
    order: list[str] = []
    outputs: list[Tensor] = []
    in_turn = True

    def block(name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal in_turn
            hidden = hidden_in(args, kwargs)
            in_turn &= not outputs or hidden is outputs[-1]
            # Each replaced block returns a tensor that requires a gradient; another argument that does depends on one.
            in_turn &= not any(t.requires_grad for t in tensors_in((args, kwargs)) if t is not hidden)
            order.append(name)
            outputs.append(torch.zeros_like(hidden, requires_grad=True))
            return blocks.wrap(outputs[-1])

        return forward

    def linear(name: str, module: nn.Linear) -> Callable[..., Any]:
        def forward(x: Tensor) -> Tensor:
            nonlocal in_turn
            in_turn &= len(order) == len(blocks.names)  # a linear layer before the blocks would get no statistics
            # Depends on the input as far as autograd can see, without a weight.
            return (0 * x.sum(-1, keepdim=True)).expand(*x.shape[:-1], module.out_features)

        return forward

    replaced = {name: block(name) for name in blocks.names}
    outside = {name: module for name, module in model.named_modules() if blocks.owner(name) is None}
    replaced |= {name: linear(name, part) for name, part in outside.items() if isinstance(part, nn.Linear)}
    ids = torch.zeros(1, 4, dtype=torch.long)
    with _without_weights(model, blocks), forwards(model, replaced), torch.enable_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        if not in_turn or tuple(order) != blocks.names:
            return False
        embedding = model.get_input_embeddings().weight  # type: ignore[operator]
        # The logits must depend on the last block's output alone: not on an earlier one, nor directly on the embedding.
    gradients = torch.autograd.grad(logits.sum(), [*outputs, embedding], allow_unused=True)
    reached = [gradient is not None for gradient in gradients]
    return reached == [False] * (len(outputs) - 1) + [True, False]


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, list | tuple) else []


@contextmanager
def _without_weights(model: nn.Module, blocks: Blocks) -> Iterator[None]:
    """Give all modules outside the blocks ones as weights, which take no memory, on the CPU; and buffers there."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, module in model.named_modules():
            if blocks.owner(f"{name}.") is not None:
                continue
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    replaced.append((module._parameters, key, parameter))
                    # One stored number: `expand` repeats it by strides of zero.
                    module._parameters[key] = nn.Parameter(torch.ones(()).expand(parameter.shape))
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    replaced.append((module._buffers, key, buffer))
                    module._buffers[key] = torch.zeros_like(buffer, device="cpu") if buffer.is_meta else buffer.cpu()
        yield
    finally:
        for table, key, value in replaced:
            table[key] = value
