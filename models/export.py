"""Writing a factorised checkpoint as a plain dense one, which loads without this package."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from ..foundation.errors import UserError, unknown
from ..foundation.files import new_folder
from .checkpoint import QUANT_METHOD
from .dtypes import OWN, SAVE_DTYPES, SaveDtypes, save_dtypes
from .embedding import LowRankEmbedding, TiedHead
from .folder_checks import check_folder, check_no_adapter
from .generation_defaults import GENERATION_FILE
from .layers import LowRankLinear
from .loading import DTYPES, load_model
from .matrices import Size, low_rank_layers, model_size, replace_module
from .shards import save_model
from .version4 import add_version_4_keys

_NOT_COPIED = (".safetensors", ".index.json")
_WRITTEN_HERE = ("config.json", GENERATION_FILE, "compression.json")


def is_factorised(folder: Path) -> bool:
    """Whether ``config.json`` of a folder announces factors; False where it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return bool(config["quantization_config"]["quant_method"] == QUANT_METHOD)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def export_dense(folder: Path, out: Path, dtype: str = OWN) -> Size:
    """Multiply the factors of a checkpoint out and write a dense one; every other file is copied.

    ``config.json`` and ``tokenizer_config.json`` get what version 4 of transformers reads (`version4`).

    Products are computed in float32 or better and rounded once. A bias that factorising added is kept where the
    architecture has a configuration flag for it; layers that the flag gives a bias too get zeros.

    Args:
        folder: factorised checkpoint.
        out: new folder.
        dtype: of the weights written: ``float32``, ``bfloat16``, ``float16``, or ``own`` (``auto`` is the same), which
            gives each tensor its dtype in the checkpoint and each product that of its factors.

    Returns:
        Parameters and bytes of the dense weights.

    Raises:
        UserError: ``folder`` is damaged or not factorised, ``out`` exists, or the architecture has no place for an
            added bias.
    """
    dtype = OWN if dtype == "auto" else dtype
    if dtype not in SAVE_DTYPES:
        raise unknown("dtype", dtype, SAVE_DTYPES)
    check_no_adapter(folder)
    if (folder / "config.json").exists():
        check_folder(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"the folder {folder} holds no model (config.json is missing); name a factorised checkpoint")
    if not is_factorised(folder):
        raise UserError(f"{folder} is not factorised, so there is nothing to multiply out; use the folder as it is")
    transformers.utils.logging.disable_progress_bar()
    own = save_dtypes(OWN, folder)
    with new_folder(out) as part:
        model = load_model(folder, dtype="auto" if own.is_uniform else "float32")
        model._weight_conversions = None  # names as on the hub, which version 4 knows too, not as in the checkpoint
        multiply_out(model, None if dtype == OWN else DTYPES[dtype])
        save_model(model, None, part, own if dtype == OWN else SaveDtypes(DTYPES[dtype]))
        copy_others(folder, part, _WRITTEN_HERE)
        add_version_4_keys(part)
        return model_size(model)


def copy_others(folder: Path, out: Path, without: Collection[str]) -> None:
    """Copy the files of a checkpoint beside its weights, such as the tokenizer's, but for those that are named."""
    for file in folder.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name not in without:
            shutil.copy(file, out / file.name)


@torch.no_grad()
def multiply_out(model: Any, dtype: torch.dtype | None = None) -> None:
    """Replace every factorised layer of a model by a dense one, in place.

    Args:
        model: a transformers model.
        dtype: of all weights afterwards; None keeps each as it is.

    Raises:
        UserError: the architecture has no place for an added bias; names the layer.
    """
    layers = low_rank_layers(model)
    flags = bias_flags(model.config, [name for name, layer in layers.items() if layer.lr_bias is not None])
    for name, layer in layers.items():
        if isinstance(layer, LowRankEmbedding):
            _multiply_out_embedding(model, name, layer, dtype)
        else:
            replace_module(model, name, _dense(layer, dtype))
    for flag in flags:
        setattr(model.config, flag, True)
    for name in _biased(model.config) if flags else ():
        dense = model.get_submodule(name)
        if dense.bias is None:
            dense.bias = nn.Parameter(dense.weight.new_zeros(dense.out_features))
    if dtype is not None:
        model.to(dtype)
        model.config.dtype = dtype


def _multiply_out_embedding(model: Any, name: str, layer: LowRankEmbedding, dtype: torch.dtype | None) -> None:
    """Put back a dense embedding, of the class that the architecture has, and the head that is tied to it."""
    weight = nn.Parameter(layer.dense_weight().to(dtype or layer.lr_a.dtype))
    plain = copy.deepcopy(model.config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    with torch.device("meta"):
        fresh = type(model)(plain)
    dense = fresh.get_submodule(name)
    for key, buffer in list(dense.named_buffers(recurse=False)):  # Gemma 3's scale, which is on the meta device here
        dense._buffers[key] = torch.full_like(buffer, layer.scale, device=weight.device)
    dense.weight = weight
    replace_module(model, name, dense)
    for head, module in list(model.named_modules()):
        if isinstance(module, TiedHead) and module.embedding is layer:
            linear = nn.Linear(1, 1, bias=False)
            linear.in_features, linear.out_features = layer.in_features, layer.out_features
            linear.weight = weight
            replace_module(model, head, linear)
    model._tied_weights_keys = type(model)._tied_weights_keys
    model.all_tied_weights_keys = dict(fresh.all_tied_weights_keys)


def _dense(layer: LowRankLinear, dtype: torch.dtype | None) -> nn.Linear:
    wide = torch.promote_types(layer.lr_a.dtype, torch.float32)
    weight = (layer.lr_b.to(wide) @ layer.lr_a.to(wide)).to(dtype or layer.lr_a.dtype)
    # Made small: a layer of full size would be filled with numbers that the weight then replaces.
    dense = nn.Linear(1, 1, bias=False)
    dense.in_features, dense.out_features = layer.in_features, layer.out_features
    dense.weight = nn.Parameter(weight)
    bias = layer.lr_bias if layer.bias is None else layer.bias
    if bias is not None:
        dense.bias = nn.Parameter(bias.to(weight.dtype))
    return dense


def bias_flags(config: Any, names: Collection[str]) -> list[str]:
    """Return the configuration flags that give the named linear layers a bias, such as ``attention_bias`` in Llama.

    Raises:
        UserError: no flag gives one of them a bias.
    """
    missing, flags = set(names), []
    # Tried one by one, because only the architecture's code says which flag gives which layer a bias.
    for flag, value in config.to_dict().items():
        if missing and "bias" in flag and value is False:
            changed = copy.deepcopy(config)
            setattr(changed, flag, True)
            if biased := missing & _biased(changed):
                missing -= biased
                flags.append(flag)
    if missing:
        raise UserError(
            f"{(config.architectures or [config.model_type])[0]} has no bias at {min(missing)} and no configuration "
            "flag for one, so this checkpoint has no plain dense form; use it factorised, or compress without an "
            "added bias"
        )
    return flags


def _biased(config: Any) -> set[str]:
    """Return the linear layers that have a bias in a model of this configuration."""
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(plain, trust_remote_code=False)
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.bias is not None}
