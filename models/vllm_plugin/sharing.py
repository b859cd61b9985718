"""First factors, kept once however many layers use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...foundation.errors import UserError


class Factor(nn.Module):
    """One matrix, (out, in), and its bias, (out,) or None, as vLLM's dense method wants them."""

    def __init__(self) -> None:
        super().__init__()
        # Beside the parameters, because vLLM's reload takes those off every module until it ends.
        self._memory: dict[str, nn.Parameter] = {}

    def fill(self, method: Any, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take new values; from the second time on in the memory of the first, which CUDA graphs refer to.

        Args:
            method: vLLM's dense method, which may pack the weight for this platform.
            weight: (out, in); from the second time on of the same shape.
            bias: (out,) or None.
        """
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        method.process_weights_after_loading(self)
        for name, parameter in list(self.named_parameters()):
            first = self._memory.setdefault(name, parameter)
            if first is not parameter:
                first.data.copy_(parameter.data)
                setattr(self, name, first)


@dataclass(frozen=True)
class StackRows:
    """Where a module's first factor lies: rows ``start`` to ``stop`` of a stack of first factors.

    Attributes:
        stack: several first factors on top of each other, so that one product serves them all.
        kind: how the stack is sharded; only layers of one kind may share it.
    """

    stack: Factor
    start: int
    stop: int
    kind: tuple[int, int]


class FirstFactors:
    """The stacks of a model.

    First factors that exactly the same layers use are stacked; so nothing is stored twice, and a layer needs as many
    products as there are different sets (one, unless it shares only some of its factors with other layers).

    Args:
        shared: owner of the first factor, by module that has none of its own.
    """

    def __init__(self, shared: Mapping[str, str]) -> None:
        self.shared = shared
        self._layer: dict[str, str] = {}
        self._rows: dict[str, StackRows] = {}

    def announce(self, layer: str, modules: tuple[str, ...]) -> None:
        """Say which modules a layer consists of; every layer does so before the first is filled."""
        self._layer |= dict.fromkeys(modules, layer)

    def owner(self, module: str) -> str:
        """Return the module whose first factor this one uses."""
        return self.shared.get(module, module)

    def stacks(self, modules: list[str]) -> list[list[str]]:
        """Group a layer's own first factors, in order, by who uses them."""
        groups: list[tuple[frozenset[str], list[str]]] = []
        for module in modules:
            users = frozenset(
                layer for name, layer in self._layer.items() if name == module or self.shared.get(name) == module
            )
            if groups and groups[-1][0] == users:
                groups[-1][1].append(module)
            else:
                groups.append((users, [module]))
        return [group for _, group in groups]

    def store(
        self, modules: list[str], factors: list[Tensor], multiple: int, kind: tuple[int, int], method: Any
    ) -> Factor:
        """Stack first factors and remember where each one lies; a reload fills the same stack again.

        Args:
            modules: their owners.
            factors: (rank, in) each, of one dtype and device.
            multiple: each gets zero rows up to the next multiple, so that the parts of the product start aligned.
            kind: input width of the whole matrix and of this process's part.
            method: vLLM's dense method.
        """
        padded = [nn.functional.pad(factor, (0, 0, 0, -len(factor) % multiple)) for factor in factors]
        stack = self._rows[modules[0]].stack if modules[0] in self._rows else Factor()
        stack.fill(method, torch.cat(padded))
        start = 0
        for module, factor in zip(modules, padded, strict=True):
            self._rows[module] = StackRows(stack, start, start + len(factor), kind)
            start += len(factor)
        return stack

    def rows_of(self, module: str, kind: tuple[int, int]) -> StackRows:
        """Return where the first factor of a module lies.

        Raises:
            UserError: this process does not hold it, or holds a different part of it.
        """
        owner = self.owner(module)
        rows = self._rows.get(owner)
        if rows is None:
            raise UserError(
                f"'{module}' uses the first factor of '{owner}', which this process does not hold; serve models that "
                "share factors between layers without pipeline parallelism"
            )
        if rows.kind != kind:
            raise UserError(
                f"'{module}' and '{owner}' share a first factor but are sharded along different axes; serve this model "
                "with --tensor-parallel-size 1"
            )
        return rows
