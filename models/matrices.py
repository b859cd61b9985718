"""The matrices of a model that can be factorised, and putting other layers in their place."""

from dataclasses import dataclass

import torch
from torch import nn

from ..foundation.errors import UserError
from .layers import LowRankLinear


@dataclass(frozen=True)
class Matrix:
    """One ``nn.Linear``: its dotted name in the model, its shape (out m, in n) and whether it has a bias."""

    name: str
    out_features: int
    in_features: int
    bias: bool

    @property
    def parameters(self) -> int:
        """Entries of the weight, m·n (the bias is not counted: it stays)."""
        return self.out_features * self.in_features

    @property
    def break_even(self) -> float:
        """κ = mn/(m+n): factors of a rank at or above it are not smaller than the weight."""
        return self.parameters / (self.out_features + self.in_features)


def tied_modules(model: nn.Module) -> set[str]:
    """Return the names of the linear layers whose weight is another module's parameter too (a tied output head)."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(name)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name for names in owners.values() if len(names) > 1 for name in names if name in linear} | (
        _declared_tied(model) & linear
    )


def _declared_tied(model: nn.Module) -> set[str]:
    # On the meta device ties are declared but not yet made, so identity alone would miss them.
    declared = getattr(model, "all_tied_weights_keys", None) or {}
    return {key.removesuffix(".weight") for pair in declared.items() for key in pair}


def head_name(model: nn.Module) -> str | None:
    """Return the dotted name of the output head, if the model has one."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get else None
    return next((name for name, module in model.named_modules() if module is head), None) if head is not None else None


def language_part(model: nn.Module) -> str:
    """Return the dotted name of the language model inside a multi-modal one; the empty string for any other model.

    A multi-modal configuration has one of its own for text; its vision and audio layers see no text, so calibration on
    text says nothing about them.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return ""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    return next((name for name, module in model.named_modules() if module is decoder), "")


def matrices(model: nn.Module, head: bool = True, required: bool = True) -> list[Matrix]:
    """List the matrices to compress, in the model's own order.

    Every ``nn.Linear`` counts, as in the Basis Selection authors' code (``methods/basis_selection.py``), except those
    tied to another parameter (factorising a tied head would silently untie it and add parameters), and those outside
    the language model of a multi-modal one.

    Args:
        model: the model; meta tensors are enough.
        head: whether an untied output head is included.
        required: whether it is an error that there is none.

    Raises:
        UserError: the model has no linear layer to compress, or (where one is required) is factorised already: its
            ratio would count from a model that is smaller, or of other numbers, than the original.
    """
    announced = getattr(getattr(model, "config", None), "quantization_config", None)
    if required and (announced or low_rank_layers(model)):
        raise UserError(
            f"this {type(model).__name__} is factorised already, and a ratio counts from the original; compress the "
            "model that it was made from, or its dense export (bench export FOLDER --dense --out DIR)"
        )
    skip = tied_modules(model) | (set() if head else {head_name(model)})
    language, output = language_part(model), head_name(model)
    linear_layers = [
        Matrix(name, module.out_features, module.in_features, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name not in skip
        and (not language or name.startswith(f"{language}.") or name == output)
    ]
    if not linear_layers and required:
        raise UserError(
            f"{type(model).__name__} has no nn.Linear layer that could be compressed; choose a model with linear "
            "layers (tied output heads and fused Conv1D layers do not count)"
        )
    return linear_layers


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted ``name`` of ``model``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def get_linear(model: nn.Module, name: str) -> nn.Linear:
    """Return the ``nn.Linear`` at a dotted name."""
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{name} is a {type(module).__name__}, not an nn.Linear")
    return module


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """Return the factorised layers of a model by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


@dataclass(frozen=True)
class Size:
    """How big a model is, counted from its module tree: parameters (tied tensors once) and their bytes."""

    parameters: int
    bytes: int


def model_size(model: nn.Module) -> Size:
    """Count every parameter once, tied ones too; works on meta tensors."""
    declared = getattr(model, "all_tied_weights_keys", None) or {}
    seen: dict[int, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # On the meta device tied tensors are declared and still two objects: count the source alone.
        source = declared.get(name)
        if source is not None and source != name and parameter.is_meta:
            continue
        seen[id(parameter)] = parameter
    return Size(sum(p.numel() for p in seen.values()), sum(p.numel() * p.element_size() for p in seen.values()))
