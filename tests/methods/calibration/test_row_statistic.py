"""The loss of an embedding's errors: one unit with that of matrices, whatever the texts and the number of them."""

import pytest
import torch
from torch import Tensor

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.moments import Moments
from lowrank_bench.methods.calibration.row_statistic import RowStatistic, nearest_product
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.matrices import embedding_matrix


class Repeated(RandomData):
    """The same texts several times."""

    def __init__(self, times: int) -> None:
        super().__init__(6)
        self.mask, self.ids, self.labels = (part.repeat(times, 1) for part in (self.mask, self.ids, self.labels))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["io-svd", "svd-llm"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_losses_of_all_matrices_grow_alike_with_the_texts(architecture: str, name: str, tied: bool) -> None:
    """So no matrix gains on another one in a pool when the same texts are read five times."""
    model = random_model(architecture, tied=tied)
    method = create_method(name, {"embeddings": True, "two_sided": True, "head": False})
    once, often = (method.fit(model, Repeated(times)) for times in (1, 5))
    names = [group.name for group in method.groups(model)]
    assert embedding_matrix(model).name in names
    for group in names:
        expected = 5 * once.factors(group).spectrum  # of the squares' roots: both sides of each loss are five times
        torch.testing.assert_close(often.factors(group).spectrum, expected, rtol=1e-3, atol=1e-3 * float(expected[0]))


def test_errors_of_lookups_are_counted_once_a_token() -> None:
    """One-sided: as those of a linear layer are, over the tokens that were read; of a head, over all its outputs."""
    assert statistic(3.0, tied=False).weights.sum() == pytest.approx(9 * 5)
    assert statistic(3.0, tied=True).weights.sum() == pytest.approx(6)


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_product_is_the_first_singular_pair_of_the_whole(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.rand(7, generator=generator).double() * 10**i for i in range(2)]
    roots = [torch.randn(5, 5, generator=generator).double() for _ in rows]
    columns = [r @ r.T for r in roots]
    weights, matrix = nearest_product(rows, columns)
    whole = sum((torch.outer(r, c.flatten()) for r, c in zip(rows, columns, strict=True)), torch.zeros(7, 25).double())
    u, s, vt = torch.linalg.svd(whole)
    torch.testing.assert_close(torch.outer(weights, matrix.flatten()), s[0] * torch.outer(u[:, 0], vt[0]))
    assert bool((weights >= 0).all())
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-9 * float(matrix.diagonal().max())


@pytest.mark.parametrize("repeated", [False, True])
def test_a_product_is_nearest_to_itself(repeated: bool) -> None:
    """Also where it comes in two parts, whose matrix has rank one."""
    rows, root = torch.rand(6).double() + 0.1, torch.randn(4, 4).double()
    gram = root @ root.T
    parts = ([rows, 2 * rows], [gram, 3 * gram]) if repeated else ([rows], [gram])
    weights, matrix = nearest_product(*parts)
    factor = 7.0 if repeated else 1.0
    torch.testing.assert_close(torch.outer(weights, matrix.flatten()), factor * torch.outer(rows, gram.flatten()))


def statistic(scale: float, tied: bool) -> RowStatistic:
    root = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    moments = Moments(root.T @ root, root.sum(0), root.abs().sum(0), 5)
    counts = torch.tensor([3.0, 0, 1, 1, 0, 0])
    head = torch.arange(6.0).double()
    return RowStatistic(counts, scale, moments if tied else None, torch.eye(4).double(), head if tied else None)


def loss(weights: Tensor, matrix: Tensor, errors: Tensor) -> float:
    return float((weights * ((errors @ matrix) * errors).sum(1)).sum())


def test_without_a_tied_head_the_loss_is_that_of_the_lookups() -> None:
    errors = torch.randn(6, 4).double()
    rows, columns = statistic(3.0, tied=False).quadratic(0.0, 0.0)
    by_token = sum(count * 9 * float(e @ e) for count, e in zip([3, 0, 1, 1, 0, 0], errors, strict=True))
    assert loss(rows, columns, errors) == pytest.approx(by_token)


def test_the_scale_is_of_the_lookup_and_not_of_the_head() -> None:
    """Where the scale is tiny, the head alone is left."""
    rows, columns = statistic(1e-9, tied=True).quadratic(0.0, 0.0)
    moments = statistic(1.0, tied=True).inputs
    assert moments is not None
    torch.testing.assert_close(
        torch.outer(rows, columns.flatten()), torch.outer(torch.arange(6.0).double(), moments.gram.flatten())
    )


def test_jitter_reaches_the_embedding() -> None:
    model, name = random_model("llama", tied=True), "model.embed_tokens"
    factors = [
        create_method("svd-llm", {"embeddings": True, "jitter": jitter}).fit(model, RandomData()).factors(name)
        for jitter in (0.0, 0.5)
    ]
    assert not torch.allclose(
        factors[0].left[:, :2] @ factors[0].right[:2], factors[1].left[:, :2] @ factors[1].right[:2]
    )
