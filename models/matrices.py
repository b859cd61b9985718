"""The matrices of a model that can be factorised, and putting other layers in their place."""

from dataclasses import dataclass

import torch
from torch import nn

from ..foundation.errors import UserError
from .embedding import LowRankEmbedding, TiedHead, embedding_scale
from .layers import LowRankLinear

LowRankLayer = LowRankLinear | LowRankEmbedding


@dataclass(frozen=True)
class Matrix:
    """One ``nn.Linear``, or the token embedding: what its weight (m, n) is called and how large it is.

    Attributes:
        name: dotted name of the module in the model.
        out_features: m; of an embedding the size of the vocabulary.
        in_features: n; of an embedding the width of the model.
        bias: whether it has one.
        embedding: whether rows are looked up.
        head: of an embedding, the output head that is tied to it and shares its factors; empty for none.
    """

    name: str
    out_features: int
    in_features: int
    bias: bool
    embedding: bool = False
    head: str = ""

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


def embedding_matrix(model: nn.Module) -> Matrix:
    """Return the token embedding as a matrix, with the output head that is tied to it.

    Raises:
        UserError: the model's embedding does more than look rows up, or is tied to something else than the head.
    """
    module = model.get_input_embeddings()  # type: ignore[operator]
    name = next((name for name, part in model.named_modules() if part is module), "")
    if not isinstance(module, nn.Embedding) or embedding_scale(module) is None:
        raise UserError(
            f"the embedding of {type(model).__name__} is a {type(module).__name__}, which does more than look rows up; "
            "leave the option embeddings out"
        )
    tied, head = tied_modules(model), head_name(model)
    if tied - {head}:
        raise UserError(
            f"{type(model).__name__} ties its embedding to {', '.join(sorted(tied - {head}))}, which is no output "
            "head; leave the option embeddings out"
        )
    shared = head if head is not None and head in tied else ""
    if shared and model.get_submodule(shared).bias is not None:
        raise UserError(
            f"the output head of {type(model).__name__} has a bias beside a weight that is the embedding's; leave the "
            "option embeddings out"
        )
    return Matrix(name, module.num_embeddings, module.embedding_dim, False, True, shared)


def matrices(model: nn.Module, head: bool = True, required: bool = True, embeddings: bool = False) -> list[Matrix]:
    """List the matrices to compress, in the model's own order; the embedding comes last, as the head that it may be.

    Every ``nn.Linear`` counts, as in the Basis Selection authors' code (``methods/basis_selection.py``), except those
    tied to another parameter (factorising a tied head would silently untie it and add parameters), and those outside
    the language model of a multi-modal one.

    Args:
        model: the model; meta tensors are enough.
        head: whether an untied output head is included.
        required: whether it is an error that there is none.
        embeddings: whether the token embedding is included, with the head that is tied to it.

    Raises:
        UserError: see `embedding_matrix`; the model has no linear layer to compress, or (where one is required) is
            factorised already: its ratio would count from a model that is smaller, or of other numbers, than the
            original.
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
    return [*linear_layers, embedding_matrix(model)] if embeddings else linear_layers


def install_embedding(model: nn.Module, matrix: Matrix, layer: nn.Module) -> None:
    """Put a factorised embedding into a model, and a head without weights in place of one that is tied to it.

    Args:
        model: changed in place.
        matrix: of the embedding.
        layer: a `LowRankEmbedding`, or another layer that looks rows up and has its method ``project``.
    """
    replace_module(model, matrix.name, layer)
    if matrix.head:
        replace_module(model, matrix.head, TiedHead(layer))
        untie(model)


def untie(model: nn.Module) -> None:
    """Let transformers forget which tensors are tied: a head without weights has none that could be."""
    model._tied_weights_keys = {}  # type: ignore[assignment]
    model.all_tied_weights_keys = {}  # type: ignore[assignment]


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


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """Return the factorised layers of a model, linear ones and embeddings, by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLayer)}


def tied_head(model: nn.Module, embedding: LowRankEmbedding) -> str:
    """Return the dotted name of the head that shares a factorised embedding's factors; empty for none."""
    heads = (name for name, part in model.named_modules() if isinstance(part, TiedHead) and part.embedding is embedding)
    return next(heads, "")


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
