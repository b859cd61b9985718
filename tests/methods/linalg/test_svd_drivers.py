"""Decompositions by every algorithm against torch's own in float64, on spectra that are made to break them."""

import pytest
import torch
from torch import Tensor

from lowrank_bench.methods.linalg import choose, svd, working_bytes
from lowrank_bench.methods.linalg.exact import eigen

TOLERANCE = 1e-3
SIDE = 96
I = torch.arange(1, SIDE + 1, dtype=torch.float64)  # noqa: E741
SPECTRA = {
    "flat": torch.ones(SIDE, dtype=torch.float64),
    "step": torch.where(I <= 9, 10.0, 1.0),
    "step at the rank": torch.where(I <= 12, 1.0, 1e-2),
    "clusters": torch.repeat_interleave(torch.tensor([100.0, 10.0, 9.9999, 1.0], dtype=torch.float64), SIDE // 4),
    "power law": 1 / I,
    "slow power law": I**-0.3,
    "exponential": torch.exp(-I / 2),
    "one outlier": torch.where(I == 1, 1e4, 1.0 + 1 / I),
    "noise bulk": torch.linspace(1, 0.01, SIDE, dtype=torch.float64),
    "rank one": torch.where(I == 1, 3.0, 0.0),
    "rank deficient": torch.where(I <= 30, 1 / I, 0.0),
    "nearly rank deficient": torch.where(I <= 30, 1 / I, 1e-5),
    "zero": torch.zeros(SIDE, dtype=torch.float64),
}
SHAPES = {"square": (SIDE, SIDE), "tall": (3 * SIDE, SIDE), "wide": (SIDE, 2 * SIDE)}
SCALES = (1e-12, 1.0, 1e12)


def matrix(spectrum: Tensor, m: int, n: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    """A float32 matrix of that spectrum, up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    k = len(spectrum)
    u, v = (torch.linalg.qr(torch.randn(size, k, generator=generator, dtype=torch.float64)).Q for size in (m, n))
    return (scale * (u * spectrum) @ v.T).float()


def check(weight: Tensor, triplets: tuple[Tensor, Tensor, Tensor], rank: int) -> None:
    """The promise of `svd`: shapes, order, orthonormality, and the residual against the optimum."""
    u, s, vt = triplets
    m, n = weight.shape
    assert (u.shape, s.shape, vt.shape) == ((m, rank), (rank,), (rank, n))
    assert bool((s[1:] <= s[:-1] * (1 + 1e-5)).all())
    for side in (u.T, vt):
        torch.testing.assert_close(side @ side.T, torch.eye(rank), rtol=0, atol=3e-6)
    wide = weight.double()
    true = torch.linalg.svdvals(wide)
    residual = (wide - u.double() * s.double() @ vt.double()).norm()
    optimum = true[rank:].square().sum().sqrt()
    assert float(residual) <= (1 + TOLERANCE) * float(optimum) + 2e-6 * float(wide.norm())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_eigen_form_is_as_good_as_lapack(name: str, shape: tuple[int, int]) -> None:
    for scale in SCALES:
        weight = matrix(SPECTRA[name], *shape, scale)
        u, s, vt = svd(weight, driver="eigen")
        for rank in (1, 12, 40, SIDE):
            check(weight, (u[:, :rank], s[:rank], vt[:rank]), rank)


@pytest.mark.parametrize("name", [name for name in SPECTRA if "deficient" not in name and name != "zero"])
def test_the_eigen_form_is_really_taken(name: str) -> None:
    weight = matrix(SPECTRA[name], SIDE, 2 * SIDE)
    assert eigen(weight) is not None


def test_equal_inputs_give_equal_results() -> None:
    weight = matrix(SPECTRA["slow power law"], SIDE, 2 * SIDE)
    first, second = (svd(weight, 12, driver="eigen") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("driver", ["lapack", "eigen"])
def test_stacks_are_decomposed_matrix_by_matrix(driver: str) -> None:
    stack = torch.stack(
        [matrix(SPECTRA[name], SIDE, SIDE + 8, seed=9) for name in ("flat", "power law", "rank one", "zero")]
    )
    rank = None if driver == "eigen" else 5
    u, s, vt = svd(stack.unflatten(0, (2, 2)), rank, driver=driver)  # type: ignore[arg-type]
    assert u.shape == (2, 2, SIDE, rank or SIDE)
    for index, alone in enumerate(stack):
        check(alone, tuple(part[index // 2, index % 2] for part in (u, s, vt)), rank or SIDE)  # type: ignore[arg-type]


def test_without_a_rank_the_cpu_gives_what_torch_gives() -> None:
    for m, n in ((70, 40), (40, 70), (1, 5), (5, 1), (1, 1)):
        weight = torch.randn(m, n, generator=torch.Generator().manual_seed(m))
        for ours, theirs in zip(svd(weight), torch.linalg.svd(weight, full_matrices=False), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 7), (7, 1), (2, 3)])
@pytest.mark.parametrize("driver", [None, "eigen"])
def test_tiny_matrices(m: int, n: int, driver: str | None) -> None:
    weight = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    check(weight, svd(weight, 1, driver=driver), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [0, -1, 6])
def test_an_impossible_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"rank .* must be in 1\.\.5"):
        svd(torch.ones(5, 9), rank)


def test_choice_is_by_side_device_and_dtype() -> None:
    for shape in ((4096, 11008), (11008, 4096), (8, 4096, 11008), (64, 64)):
        assert choose(shape, "cpu", torch.float32) == "lapack"
        assert choose(shape, "cuda:1", torch.float32) == "eigen"
        assert choose(shape, "cuda", torch.float64) == "lapack"
    assert choose((16, 4096), "cuda", torch.float32) == "lapack"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_working_bytes_grow_with_everything(device: str) -> None:
    assert working_bytes(4096, 11008, device=device) == working_bytes(11008, 4096, device=device)
    assert working_bytes(100, 100, device=device) < working_bytes(100, 101, device=device)
    assert (
        working_bytes(100, 100, device=device) < working_bytes(100, 100, double=True, device=device) or device == "cuda"
    )
    assert working_bytes(100, 300, device=device) >= 4 * (100 * 400 + 100)  # at least the results
