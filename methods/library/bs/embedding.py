"""The token embedding as Basis Selection trains it, and what it was before."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ....models.embedding import LowRankEmbedding, embedding_scale, scaled
from ....models.matrices import Matrix, install_embedding, replace_module
from ...fitted import Factors
from .layer import BasisLinear, Start


class BasisEmbedding(BasisLinear):
    """Token t is scale · (Σ_kept w_i² u_ti v_i + ũ_t Ṽ); a tied head is the linear layer of the same matrix.

    Bases, singular values and new vectors are those of `BasisLinear` for the weight E (V, d), which the head and the
    lookup share. Of the frozen U only the rows of a batch's tokens are read.

    Args:
        factors: E as an ordered sum of rank-one parts.
        dense: the embedding; its weight is not read.
        extra, start, seed, dtype, bases_dtype: see `BasisLinear`.
    """

    def __init__(
        self,
        factors: Factors,
        dense: nn.Embedding,
        extra: int,
        start: Start,
        seed: int,
        dtype: torch.dtype,
        bases_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(factors, None, extra, start, seed, dtype, bases_dtype)
        scale = embedding_scale(dense)
        if scale is None:
            raise ValueError(f"{type(dense).__name__} does more than look rows up")
        self.scale, self.padding_idx = scale, dense.padding_idx
        self.num_embeddings, self.embedding_dim = self.out_features, self.in_features

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (…) to (…, d), in the dtype of the parameters under autocast too, as a dense embedding does."""
        dtype = self.weight_root.dtype
        rows = (nn.functional.embedding(ids, self.left).to(dtype) * self.roots() ** 2) @ self.right.to(dtype)
        if self.extra:
            rows = rows + nn.functional.embedding(ids, self.extra_left, self.padding_idx) @ self.extra_right
        return scaled(rows.to(dtype), self.scale)

    def project(self, x: Tensor) -> Tensor:
        """Map (…, d) to (…, V), as the tied head."""
        return super().forward(x)

    def share(self) -> None:
        """Refuse shards: the tied head would need them outside of this layer's own forward pass."""
        raise NotImplementedError("an embedding of bases is not sharded over processes")


class DenseEmbedding:
    """An embedding and the head that is tied to it without their weight, to be put back or replaced by factors.

    Args:
        model: dense; its modules give their weight up.
        matrix: of the embedding.
    """

    def __init__(self, model: nn.Module, matrix: Matrix) -> None:
        embedding = model.get_submodule(matrix.name)
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"{matrix.name} is a {type(embedding).__name__}, not an nn.Embedding")
        self.matrix, self.embedding = matrix, embedding
        self.head = model.get_submodule(matrix.head) if matrix.head else None
        names = ("_tied_weights_keys", "all_tied_weights_keys")  # `install_embedding` empties them
        self._ties: dict[str, Any] = {name: getattr(model, name) for name in names if hasattr(model, name)}

    def replace(self, model: nn.Module, layer: BasisEmbedding) -> None:
        """Put a layer of bases in place of both."""
        install_embedding(model, self.matrix, layer)
        for module in (self.embedding, self.head):
            if module is not None:
                module._parameters["weight"] = None

    def put_factors(self, model: nn.Module, a: Tensor, b: Tensor, training: bool) -> None:
        """Put two factors, A (r, d) and B (V, r), in place of a layer of bases."""
        install_embedding(model, self.matrix, LowRankEmbedding.from_factors(a, b, self.embedding).train(training))

    def put_back(self, model: nn.Module, weight: Tensor, training: bool) -> None:
        """Put dense modules of one weight (V, d) in place of a layer of bases, and the tie as it was."""
        shared = nn.Parameter(weight)
        for name, shell in ((self.matrix.name, self.embedding), (self.matrix.head, self.head)):
            if shell is not None:
                # A copy, because each budget of a trajectory needs the shells again.
                module = copy.deepcopy(shell)
                module._parameters["weight"] = shared
                replace_module(model, name, module.train(training))
        for key, value in self._ties.items():
            setattr(model, key, value)
