"""The factorised embedding, and the output head that is tied to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRankEmbedding(nn.Module):
    """An embedding stored as two factors: token t is ``scale · lr_b[t] lr_a``.

    The same two factors as in `layers.LowRankLinear`, for the weight E (V, d) ≈ lr_b lr_a: a tied head is the linear
    layer of that weight.

    Args:
        num_embeddings: V, size of the vocabulary.
        embedding_dim: d, width of the model.
        rank: r; the layer stores r·(V + d) weights.
        dtype, device: of both parameters.
        scale: factor on what is looked up, as Gemma 3 has it; the head does not have it.
        padding_idx: token whose row gets no gradient, or None.

    Parameters: ``lr_a`` (r, d), ``lr_b`` (V, r).
    """

    # What a factorised linear layer may have and an embedding never has.
    source = None
    bias = None
    lr_bias = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        scale: float = 1.0,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= embedding_dim:
            raise ValueError(
                f"rank {rank} does not fit a {num_embeddings} x {embedding_dim} embedding; it must lie between 1 and "
                f"{embedding_dim}"
            )
        self.num_embeddings, self.embedding_dim, self.rank = num_embeddings, embedding_dim, rank
        self.scale, self.padding_idx = scale, padding_idx
        self.lr_a = nn.Parameter(torch.empty(rank, embedding_dim, dtype=dtype, device=device))
        self.lr_b = nn.Parameter(torch.empty(num_embeddings, rank, dtype=dtype, device=device))

    @classmethod
    def from_factors(cls, a: Tensor, b: Tensor, dense: nn.Embedding) -> LowRankEmbedding:
        """Build the layer that takes the place of a dense embedding, from A (r, d) and B (V, r), which say the dtype.

        Raises:
            ValueError: the embedding computes something that this layer does not, see `embedding_scale`.
        """
        scale = embedding_scale(dense)
        if scale is None:
            raise ValueError(f"{type(dense).__name__} does more than look rows up")
        layer = cls(b.shape[0], a.shape[1], a.shape[0], a.dtype, a.device, scale, dense.padding_idx)
        with torch.no_grad():
            layer.lr_a.copy_(a)
            layer.lr_b.copy_(b)
        return layer

    @property
    def in_features(self) -> int:
        """Width of the head's input, d."""
        return self.embedding_dim

    @property
    def out_features(self) -> int:
        """Outputs of the head, V."""
        return self.num_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (…) to (…, d)."""
        return scaled(nn.functional.embedding(ids, self.lr_b, self.padding_idx) @ self.lr_a, self.scale)

    def project(self, x: Tensor) -> Tensor:
        """Map (…, d) to (…, V), as the tied head."""
        return nn.functional.linear(nn.functional.linear(x, self.lr_a), self.lr_b)

    def dense_weight(self) -> Tensor:
        """Return the product B A, shape (V, d), multiplied in float32 or better."""
        wide = torch.promote_types(self.lr_a.dtype, torch.float32)
        return (self.lr_b.to(wide) @ self.lr_a.to(wide)).to(self.lr_a.dtype)

    def extra_repr(self) -> str:
        """Describe the shape in `repr`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"


class TiedHead(nn.Module):
    """An output head whose weight is a factorised embedding's: logits = x Aᵀ Bᵀ. It stores nothing.

    Args:
        embedding: where the factors are; it has a method ``project``, as `LowRankEmbedding`.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, or it would be registered as a child and stored twice

    @property
    def embedding(self) -> nn.Module:
        """The embedding that stores the factors."""
        return self._embedding[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d) to (…, V)."""
        logits: Tensor = self.embedding.project(x)  # type: ignore[operator]
        return logits


def scaled(rows: Tensor, scale: float) -> Tensor:
    """Return rows times a factor as transformers does: a float32 buffer, rounded to the rows' dtype."""
    return rows if scale == 1 else rows * torch.tensor(scale, dtype=torch.float32, device=rows.device).to(rows.dtype)


def embedding_scale(embedding: nn.Module) -> float | None:
    """Return the factor on an embedding's rows, 1 for torch's own class; None where it computes something else."""
    scale = getattr(embedding, "scalar_embed_scale", None)
    if type(embedding) is nn.Embedding:
        return None if embedding.max_norm is not None else 1.0
    return float(scale) if isinstance(embedding, nn.Embedding) and scale is not None else None
