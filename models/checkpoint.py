"""Factorised checkpoints: ordinary safetensors plus ``quantization_config`` in ``config.json``.

    "quantization_config": {
        "quant_method": "lowrank",
        "version": 1,
        "ranks": {"model.layers.0.self_attn.q_proj": 96, …},
        "shared": {"model.layers.0.self_attn.k_proj": "model.layers.0.self_attn.q_proj", …},
        "added_bias": ["model.layers.0.self_attn.q_proj", …],
        "dense": ["lm_head", …],
        "guard": "model.layers.0.self_attn.q_proj.weight",
        "embeddings": {"model.embed_tokens": "lm_head"}
    }

``ranks`` names every factorised module; each has the tensors ``<module>.lr_a`` (r, in), ``<module>.lr_b`` (out, r) and
its old ``<module>.bias``. A module in ``shared`` has no ``lr_a`` of its own: it uses that of the named owner, which
comes before it in the model. A module in ``added_bias`` has an ``<module>.lr_bias`` (out,) that its dense form lacks.
``embeddings`` names the token embedding, where that is factorised, and the output head that is tied to it and has no
tensors (empty where it is not tied). ``dense`` names the linear layers that stayed as they were. ``guard`` names an
empty tensor: without this package transformers only warns about unknown quantisation and fills the factors with noise,
but a tensor of another shape than the dense layer's is an error there.

After `register` (done by importing this module) transformers loads such a folder factorised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..foundation.errors import UserError
from .embedding import LowRankEmbedding, embedding_scale
from .layers import LowRankLinear
from .layout import LOWRANK, Layout
from .matrices import (
    Matrix,
    get_linear,
    install_embedding,
    low_rank_layers,
    matrices,
    replace_module,
    tied_head,
    tied_modules,
)
from .saved import verify_saved

QUANT_METHOD = LOWRANK


def announces_factors(config: Any) -> bool:
    """Whether a model's configuration says that it is factorised; a skeleton of it has dense layers all the same."""
    announced = getattr(config, "quantization_config", None)
    fields = announced if isinstance(announced, Mapping) else vars(announced or object)
    return bool(fields.get("quant_method") == QUANT_METHOD)


class LowRankConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a factorised checkpoint as transformers keeps it; see `layout.Layout`."""

    def __init__(self, **fields: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.layout = Layout.read(fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain data that goes into ``config.json``."""
        return self.layout.to_dict()


def put_layers(model: Any, layout: Layout) -> Layout:
    """Replace linear layers and the embedding by empty factorised ones.

    Returns:
        The layout without what the model does not have.

    Raises:
        UserError: the layout names what is no linear layer, or as an embedding what is none.
    """
    layout = _without_head(model, layout)
    for name, head in layout.embeddings.items():
        _put_embedding(model, name, layout.ranks[name], head)
    layers: dict[str, LowRankLinear] = {}
    for name, rank in layout.ranks.items():
        if name in layout.embeddings:
            continue
        try:
            dense = get_linear(model, name)
        except (AttributeError, TypeError) as error:
            raise UserError(
                f"the checkpoint announces factors for '{name}', which is no linear layer of "
                f"{type(model).__name__}; load it with AutoModelForCausalLM, or make the checkpoint again"
            ) from error
        layers[name] = LowRankLinear(
            dense.in_features,
            dense.out_features,
            rank,
            dense.bias is not None,
            dense.weight.dtype,
            dense.weight.device,
            name in layout.added_bias,
            layers[layout.shared[name]] if name in layout.shared else None,
        )
        replace_module(model, name, layers[name])
    return layout


def _put_embedding(model: Any, name: str, rank: int, head: str) -> None:
    """Replace the token embedding by an empty factorised one, and the head that is tied to it."""
    try:
        dense = model.get_submodule(name)
        model.get_submodule(head)
    except AttributeError:
        dense = None
    scale = embedding_scale(dense) if dense is not None else None
    if not isinstance(dense, nn.Embedding) or scale is None or (head and head not in tied_modules(model)):
        raise UserError(
            f"the checkpoint announces factors for the embedding '{name}' and the tied head '{head}', which "
            f"{type(model).__name__} does not have as such; load it with AutoModelForCausalLM, or make it again"
        )
    size = dense.num_embeddings, dense.embedding_dim
    layer = LowRankEmbedding(*size, rank, dense.weight.dtype, dense.weight.device, scale, dense.padding_idx)
    install_embedding(model, Matrix(name, *size, False, True, head), layer)


class LowRankQuantizer(HfQuantizer):
    """Puts empty factorised layers into a model before transformers fills in the tensors."""

    # transformers then refuses the method for a checkpoint that does not announce it.
    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        layout = self.quantization_config.layout = put_layers(model, self.quantization_config.layout)
        # No parameter has the guard's name, so that loading would report it as unexpected.
        if layout.guard:
            ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
            model._keys_to_ignore_on_load_unexpected = {*ignored, re.escape(layout.guard)}
        self._dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # Of a quantised model transformers keeps the stored dtype of what it renames, as all that `AutoModel` loads.
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(self._dtypes.get(name, parameter.dtype))
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Return what `save_pretrained` writes: the model's tensors and the guard.

        The layout is read off the model, as merged adapters change ranks; ``config.json`` is written after this.
        """
        if low_rank_layers(model) and not getattr(model, "_hf_peft_config_loaded", False):
            self.quantization_config.layout = describe(model)
            model.config.quantization_config = self.quantization_config
        guard = self.quantization_config.layout.guard
        return model.state_dict() | ({guard: torch.empty(0)} if guard else {}), {}

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` may write the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the Trainer may train the model."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `generate` may compile the model for a static cache, as it does dense ones: factors are products."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether all parameters train, not only adapters beside them."""
        return True


def _without_head(model: Any, layout: Layout) -> Layout:
    """Return the layout as the model names its modules: `AutoModel` builds the inner model, without prefix and head."""
    prefix = f"{model.base_model_prefix}."
    if model.base_model is not model or not any(name.startswith(prefix) for name in layout.ranks):
        return layout
    inner = {name: name.removeprefix(prefix) for name in layout.ranks if name.startswith(prefix)}
    shared = {name: owner for name, owner in layout.shared.items() if name in inner}
    # A factor whose owner is outside the inner model (the head's) cannot be read there, so its users go too.
    ranks = {inner[name]: layout.ranks[name] for name in inner if shared.get(name, name) in inner}
    return Layout(
        ranks,
        {inner[name]: inner[owner] for name, owner in shared.items() if owner in inner},
        tuple(inner[name] for name in layout.added_bias if name in inner),
        tuple(name.removeprefix(prefix) for name in layout.dense if name.startswith(prefix)),
        f"{next(iter(ranks))}.weight" if ranks else "",
        {inner[name]: "" for name in layout.embeddings if name in inner},
    )


def register() -> None:
    """Make transformers load factorised folders; calling it again changes nothing."""
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANT_METHOD)(LowRankConfig)
        register_quantizer(QUANT_METHOD)(LowRankQuantizer)


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model, dense or factorised, and its tokenizer as one folder.

    Args:
        model: a transformers model, possibly with `LowRankLinear` layers.
        tokenizer: saved beside it, or None.
        folder: made if missing.

    Raises:
        UserError: what was written is not whole.
    """
    layers = low_rank_layers(model)
    quantizer = getattr(model, "hf_quantizer", None)
    if layers:
        config = LowRankConfig(**describe(model).to_dict())
        model.config.quantization_config = config
        model.hf_quantizer = LowRankQuantizer(config)
    elif isinstance(quantizer, LowRankQuantizer):
        # All factors have been multiplied out since loading, so that the folder must not announce any.
        quantizer.remove_quantization_config(model)
    # Factors keep their module names on disk, so that ranks and tensors agree (GPT-NeoX would be renamed otherwise).
    model.save_pretrained(folder, save_original_format=not layers)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    verify_saved(model, folder)


def describe(model: nn.Module) -> Layout:
    """Return the layout of a factorised model."""
    layers = low_rank_layers(model)
    names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}
    shared = {name: names[layer.source] for name, layer in layers.items() if layer.source is not None}
    return Layout(
        ranks={name: layer.rank for name, layer in layers.items()},
        shared=shared,
        added_bias=tuple(name for name, layer in layers.items() if layer.lr_bias is not None),
        dense=tuple(matrix.name for matrix in matrices(model, required=False)),
        guard=f"{next(iter(layers))}.weight",
        embeddings={
            name: tied_head(model, layer) for name, layer in layers.items() if isinstance(layer, LowRankEmbedding)
        },
    )


register()
