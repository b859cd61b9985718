"""Random matrices with the spectra of trained ones, made on the device that they are used on."""

import torch
from torch import Tensor

HEAD, EXPONENT, SHARE = 12.0, 0.7, 4


def realistic(m: int, n: int, seed: int, device: str = "cpu") -> Tensor:
    """Return W (m, n), float32: a power law over a bulk of noise.

    The noise is Gaussian, so its singular values fill the Marchenko-Pastur range up to an edge. Added are k/4
    directions, k = min(m, n), of size 12 i^-0.7 in units of that edge: some thirty exceed it by up to a factor 12, the
    rest sinks into the bulk and widens it. This is a model of what is described for trained transformers (few outliers,
    a heavy shoulder, a slowly falling tail); no trained 7B weights were at hand to fit it to.
    """
    generator = torch.Generator(device).manual_seed(seed)
    directions = max(min(m, n) // SHARE, 1)
    left, right, noise = (
        torch.randn(shape, generator=generator, device=device) for shape in ((m, directions), (directions, n), (m, n))
    )
    edge = m**0.5 + n**0.5
    sizes = HEAD * edge * torch.arange(1, directions + 1, device=device) ** -EXPONENT / (m * n) ** 0.5
    return (noise + (left * sizes) @ right) * (0.02 / edge)


def layer(width: int, ratio: float = 2.75) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of a Llama decoder layer's seven matrices; ``ratio`` is MLP width over width."""
    wide = round(ratio * width)
    square = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    return square | {"gate": (wide, width), "up": (wide, width), "down": (width, wide)}


def rank_at(shape: tuple[int, int], ratio: float) -> int:
    """Return the rank at which factors hold 1/ratio of the matrix's entries."""
    m, n = shape
    return max(int(m * n / (m + n) / ratio), 1)


def excess(weight: Tensor, product: Tensor, singular: Tensor, rank: int) -> float:
    """Return ‖W - BA‖_F over the best possible at that rank, minus one, in float64.

    Args:
        weight: W. product: BA.
        singular: all singular values of W.
        rank: r.
    """
    optimum = singular[rank:].double().square().sum().sqrt()
    return float((weight.double() - product.double()).norm() / optimum) - 1
