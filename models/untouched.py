"""What compression left dense, and why, with its share of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from .matrices import LowRankLayer, head_name, language_part, matrices, tied_modules

_EMBEDDING = "methods with a rule for rows factorise them, with embeddings=true"
_CANDIDATES = "linear layers", "the method does not compress them"
_HEAD = "the method was asked to leave it (head=false)"
_APART = "experts", "vision and audio layers"


@dataclass(frozen=True)
class Untouched:
    """One kind of parameters that stays dense.

    Attributes:
        what: what they are: ``embeddings``, ``experts``, ``3 linear layers`` …
        why: why they stay.
        parameters: how many there are.
        share: of all parameters of the model, 0..1.
    """

    what: str
    why: str
    parameters: int
    share: float


def untouched(model: nn.Module, reasons: Mapping[str, str]) -> list[Untouched]:
    """List what is dense in a model, largest first; small things such as norms and biases come as one line.

    Args:
        model: the compressed model.
        reasons: why single linear layers stayed dense, by name, as the method reports it.
    """
    tied, language = bool(tied_modules(model)), language_part(model)
    head = head_name(model)
    seen: set[int] = set()
    sizes: dict[tuple[str, str], int] = {}
    layers: dict[tuple[str, str], int] = {}
    total = 0
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            total += parameter.numel()
            if isinstance(module, LowRankLayer) and key in ("lr_a", "lr_b", "lr_bias"):
                continue
            if language and name != head and not name.startswith(f"{language}."):
                kind = ("vision and audio layers", "they are no part of the language model")
            else:
                kind = _kind(name, module, key, parameter.ndim, tied, name == head, reasons)
            sizes[kind] = sizes.get(kind, 0) + parameter.numel()
            layers[kind] = layers.get(kind, 0) + 1
    parts = [
        Untouched(
            f"{layers[kind]} {kind_name}" if kind_name.startswith("linear") else kind_name, kind[1], size, size / total
        )
        for kind, size in sizes.items()
        for kind_name in (kind[0] if layers[kind] > 1 else kind[0].replace("layers", "layer"),)
    ]
    return sorted(parts, key=lambda part: -part.parameters)


def out_of_reach(model: nn.Module) -> str:
    """Return which parts of a dense model no method factorises, with parameter counts; nothing where it is plain.

    A model is plain unless it has experts stored as one tensor of all of them, or layers beside the language model.

    Args:
        model: the dense model; meta tensors are enough.
    """
    parts = untouched(model, {})
    if not any(part.what in _APART for part in parts):
        return ""
    factorised = sum(m.in_features * m.out_features for m in matrices(model, required=False))
    total = sum(parameter.numel() for parameter in model.parameters())
    dense = [
        f"{part.parameters:,} of {part.what} ({part.why})"
        for part in parts
        if part.why not in (_CANDIDATES[1], _HEAD, _EMBEDDING) and part.what != "norms and biases"
    ]
    return (
        f"methods factorise {factorised:,} of the {total:,} parameters ({100 * factorised / total:.1f} %), in linear "
        f"layers; dense stay {'; '.join(dense)}"
    )


def _kind(
    name: str, module: nn.Module, key: str, dimensions: int, tied: bool, head: bool, reasons: Mapping[str, str]
) -> tuple[str, str]:
    if dimensions < 2:
        return "norms and biases", "vectors have no rank to lower"
    if isinstance(module, nn.Embedding):
        return "embeddings and tied output head" if tied else "embeddings", _EMBEDDING
    if dimensions > 2:
        return "experts", "stored as one tensor of all experts, which no method here factorises"
    if isinstance(module, nn.Linear):
        if name in reasons:
            return "linear layers", reasons[name]
        if head:
            return "output head", _HEAD
        return _CANDIDATES
    return f"{type(module).__name__} layers", "no nn.Linear, which is what methods factorise"
