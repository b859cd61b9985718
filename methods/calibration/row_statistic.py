"""What task data say of a token embedding: counts of tokens, inputs of a tied head, gradients of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .frequencies import token_weights
from .moments import Moments

EMBEDDING_VERSION = 2
"""Of the factors of embeddings; those of version 1 had a spectrum in another unit than those of matrices."""


@dataclass(frozen=True)
class RowStatistic:
    """What is known of a token embedding E (V, d).

    Attributes:
        counts: (V,) float64, how often each token is in the texts.
        scale: factor on what is looked up; a tied head does not have it.
        inputs: moments of what enters the tied head; None without one.
        gradients: R (d, d), second moments of the gradients of what is looked up; None where they do not weigh.
        head_gradients: r (V,), sums of the squared gradients of each logit of the tied head; None without one, and
            where they do not weigh.
    """

    counts: Tensor
    scale: float = 1.0
    inputs: Moments | None = None
    gradients: Tensor | None = None
    head_gradients: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """Return the weights (V,) of the rows' errors, float64.

        With a tied head, where the inputs weigh too, those of frequent tokens count more and all together as much as
        without weights: the loss is in the unit of the head's outputs, squared errors summed over the tokens that were
        read. Without one it is that of what is looked up, summed over the same tokens.
        """
        weights = token_weights(self.counts)
        if self.inputs is not None:
            return weights
        return weights * (self.scale**2 * float(self.counts.sum()) / len(weights))

    def quadratic(self, shrink_input: float, shrink_output: float) -> tuple[Tensor, Tensor]:
        """Return w (V,) and M (d, d), float64: the loss of errors δ_t of the rows is about Σ_t w_t δ_tᵀ M δ_t.

        That is the Kronecker-factored quadratic model that two-sided methods have for linear layers, in its unit. Of a
        lookup it is Σ_t c_t δ_tᵀ R δ_t, c the counts. Of a tied head it is Σ_t r_t δ_tᵀ G δ_t, G the moments of its
        inputs, where the curvature between logits is left out: it is V x V. The sum of both is not one product, so the
        nearest product in the Frobenius norm is taken (Van Loan and Pitsianis, 1993). Products of the errors of lookup
        and head are left out.

        Args:
            shrink_input, shrink_output: share of the mean diagonal that is mixed into moments of inputs (c, G) and of
                gradients (R, r), as for linear layers.
        """
        if self.gradients is None:
            raise ValueError("the loss of an embedding's rows needs gradients")
        rows = [shrunk(self.counts.double(), shrink_input)]
        columns = [shrunk(self.gradients.double(), shrink_output) * self.scale**2]
        if self.inputs is not None and self.head_gradients is not None:
            rows.append(shrunk(self.head_gradients.double(), shrink_output))
            columns.append(shrunk(self.inputs.gram.double(), shrink_input))
        return nearest_product(rows, columns)


def shrunk(moments: Tensor, share: float) -> Tensor:
    """Return (1-a)·C + a·mean(diag C)·I, of a matrix (n, n) or of its diagonal (n,)."""
    mixed = (1 - share) * moments
    diagonal = mixed if mixed.dim() == 1 else mixed.diagonal()
    diagonal.add_(share * (moments if moments.dim() == 1 else moments.diagonal()).mean())
    return mixed


def nearest_product(rows: list[Tensor], columns: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return w and M whose product w ⊗ M is nearest to Σ_i rows_i ⊗ columns_i in the Frobenius norm.

    It is the first singular pair of a matrix of rank k, found in k dimensions. Sums of non-negative vectors and of
    positive semidefinite matrices give one of each (Perron).

    Args:
        rows: k vectors (V,), not negative.
        columns: k symmetric positive semidefinite matrices (d, d), on the same device as the rows.
    """
    left, outer = torch.linalg.qr(torch.stack(rows, 1))
    right, inner = torch.linalg.qr(torch.stack([column.flatten() for column in columns], 1))
    u, s, vt = torch.linalg.svd(outer @ inner.T)
    weights, matrix = left @ u[:, 0], (right @ vt[0] * s[0]).reshape(columns[0].shape)
    # An SVD leaves the common sign of a pair open; of the two signs, one makes both w and M non-negative (Perron).
    sign = -1.0 if float(weights.sum()) < 0 else 1.0
    return (sign * weights).clamp_min(0), sign * matrix
