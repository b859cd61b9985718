"""The diagonal Fisher information of a token embedding, the head that is tied to it included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...models.embedding import embedding_scale
from ...models.matrices import embedding_matrix
from .offload_cache import OffloadCache
from .statistics import watch_output_gradient


def squared_gradient_sums(other: Tensor, summed_by: Tensor) -> Tensor:
    """Return Σ over examples and over i of (GᵀX)²_ij, where GᵀX is one example's weight gradient, shape (n,).

    Either GᵀX is formed (t·m·n operations, m·n memory an example) or, as Σ_i (GᵀX)²_ij = [Xᵀ(GGᵀ)X]_jj, the token
    Gram matrix is (t²·(m+n) operations, t² memory): whichever costs less.

    Args:
        other: G (b, t, m), summed over.
        summed_by: X (b, t, n).
    """
    tokens, m, n = other.shape[1], other.shape[2], summed_by.shape[2]
    if tokens * (m + n) < m * n:
        return ((other @ other.transpose(1, 2) @ summed_by) * summed_by).sum((0, 1))
    return (other.transpose(1, 2) @ summed_by).square().sum((0, 1))


class EmbeddingFisher:
    """Gathers Σ over examples of the squared gradient of E (V, d), summed by token or by column.

    An example's gradient of row v is h_v + Σ_i g_i over the positions i of token v: g (t, d) is the gradient of what
    was looked up, and h = Dᵀ X, of a tied head alone, is made of its logits' gradient D (t, V) and its input X (t, d).
    As

        ‖h_v + Σ_i g_i‖² = ‖h_v‖² + Σ_i g_i · (2 h_v + Σ_j g_j),    i and j over the positions of token v,

    sums over tokens and columns need h at the positions of the texts alone, (t, d). It waits from the head's backward
    pass until that of the lookup, in the order of the batches.

    Args:
        axis: ``in`` sums by token, the lookup's input, and gives (V,); ``out`` by column and gives (d,).

    Attributes:
        waiting: where h waits.
    """

    def __init__(self, axis: Literal["in", "out"]) -> None:
        self.axis, self.waiting = axis, OffloadCache()
        self._sums: dict[str, Tensor] = {}
        self._ids = self._inputs = torch.zeros(0)
        self._put = self._taken = 0

    def watch(self, model: nn.Module, name: str) -> list[Any]:
        """See what the embedding of that name looks up and what its tied head computes; returns hooks to remove."""
        embedding = model.get_submodule(name)
        head = embedding_matrix(model).head
        handles: list[Any] = [embedding.register_forward_hook(self._looked_up(bool(head)))]
        if head:
            module = model.get_submodule(head)
            handles.append(module.register_forward_pre_hook(self._enters_head))
            handles.append(watch_output_gradient(module, self._leaves_head))
        return handles

    def result(self) -> Tensor | None:
        """Return the sums over all examples, float32 on the CPU; None before the first."""
        if "lookup" not in self._sums:
            return None
        return (self._sums["lookup"] + self._sums.get("head", torch.zeros(()))).clamp_min(0)  # a sum of squares

    def _looked_up(self, tied: bool) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def forward(embedding: nn.Module, args: tuple[Any, ...], rows: Tensor) -> None:
            ids = self._ids = args[0]
            if not torch.is_grad_enabled():
                return
            if not rows.requires_grad:
                rows.requires_grad_()
            scale, padding = embedding_scale(embedding), embedding.padding_idx

            def backward(gradient: Tensor) -> None:
                g = gradient.detach().float()
                g = g if scale == 1 or scale is None else g * scale
                if padding is not None:  # its row gets no gradient from a lookup
                    g = g * (ids != padding)[..., None]
                self._add_lookup(ids, g, int(embedding.num_embeddings), tied)  # type: ignore[arg-type]

            rows.register_hook(backward)

        return forward

    def _add_lookup(self, ids: Tensor, g: Tensor, vocabulary: int, tied: bool) -> None:
        sums = (ids[:, :, None] == ids[:, None, :]).to(g) @ g  # of each position's token over its example
        if tied:
            sums = sums + 2 * self.waiting.take(("head rows", self._taken)).to(g)
            self._taken += 1
        products = g * sums
        if self.axis == "out":
            self._add("lookup", products.sum((0, 1)))
            return
        # On the CPU: sums by index are in no fixed order on a GPU, and these are few numbers.
        by_position = products.sum(-1).flatten().cpu()
        self._add("lookup", torch.zeros(vocabulary).index_add_(0, ids.flatten().cpu(), by_position))

    def _enters_head(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._inputs = args[0].detach()

    def _leaves_head(self, gradient: Tensor) -> None:
        shape = self._ids.shape
        x, d = (part.detach().float().reshape(*shape, part.shape[-1]) for part in (self._inputs, gradient))
        self._inputs = torch.zeros(0)
        self._add("head", squared_gradient_sums(x, d) if self.axis == "in" else squared_gradient_sums(d, x))
        # (b, t, t): D's columns of the text's own tokens. Its transpose times X is h at each position, (b, t, d).
        at_positions = d.gather(2, self._ids[:, None, :].expand(-1, shape[1], -1))
        self.waiting.put(("head rows", self._put), at_positions.transpose(1, 2) @ x)
        self._put += 1

    def _add(self, name: str, sums: Tensor) -> None:
        self._sums[name] = self._sums.get(name, torch.zeros(())) + sums.cpu()
