"""Loading models and tokenizers, dense and factorised, with errors that name the file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..foundation.errors import UserError
from . import checkpoint
from .layout import Layout, check_tensors
from .matrices import Size, model_size

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(location: str | Path, revision: str = "", dtype: str = "float32", device: str = "cpu") -> Any:
    """Load a causal language model, dense or factorised, ready for evaluation.

    Args:
        location: folder or hub id.
        revision: hub commit, or empty for a folder.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the checkpoint's own.
        device: torch device.

    Raises:
        UserError: a corrupt or incomplete folder (names the file or tensor), or a hub that cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    checkpoint.register()
    if Path(location).is_dir():
        verify_folder(Path(location))
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(location),
            revision=revision or None,
            dtype="auto" if dtype == "auto" else DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"the model '{location}' cannot be loaded ({_first_line(error)}); check the folder, or for a hub model the "
            "connection and your access, or name a local folder"
        ) from error
    # transformers fills both kinds with noise and goes on.
    absent, misfit = sorted(found["missing_keys"]), sorted(key for key, *_ in found["mismatched_keys"])
    if absent or misfit:
        raise UserError(
            f"the weights of '{location}' do not belong to its config.json: the tensor {(absent + misfit)[0]} "
            f"{'is missing' if absent else 'has another shape'}; make or copy the checkpoint again"
        )
    return model.to(device).eval()


def load_tokenizer(location: str | Path, revision: str = "") -> Any:
    """Load the tokenizer that belongs to a model; a missing padding token is set to the end-of-sequence token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(location), revision=revision or None)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer of '{location}' cannot be loaded ({_first_line(error)}); the model's folder needs its "
            "tokenizer files"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_skeleton(location: str | Path, revision: str = "") -> nn.Module:
    """Build the model on the meta device: every shape, no weights, a few milliseconds.

    Raises:
        UserError: the configuration cannot be read or describes no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint.register()
    try:
        config = AutoConfig.from_pretrained(str(location), revision=revision or None)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"the configuration of '{location}' describes no causal language model that transformers can build "
            f"({_first_line(error)}); name another model"
        ) from error


def verify_folder(folder: Path) -> None:
    """Check that a model folder is whole before anything is loaded.

    transformers fills missing tensors with noise and only warns, so every safetensors file is opened, every file that
    an index names must exist, and every factor that ``config.json`` announces must be there with its rank.
    """
    try:
        file = folder / "config.json"
        announced = json.loads(file.read_text(encoding="utf-8")).get("quantization_config") or {}
        files = sorted(folder.glob("*.safetensors"))
        if (index := folder / "model.safetensors.index.json").is_file():
            file = index
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error}); make or copy the checkpoint again") from error
    shapes: dict[str, tuple[int, ...]] = {}
    if not files:
        raise UserError(f"{folder} holds no *.safetensors file; make the checkpoint again")
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is corrupt or cut short ({_first_line(error)}); make or copy the checkpoint again"
            ) from error
    if announced.get("quant_method") == checkpoint.QUANT_METHOD:
        check_tensors(Layout.read(announced), shapes, str(folder))


def weights_size(location: str | Path, revision: str = "", dtype: str = "float32") -> Size:
    """Return parameters and bytes of a model's weights: from its safetensors files, or for a hub id from its shape.

    Args:
        location: folder or hub id.
        revision: hub commit.
        dtype: what the bytes of a hub model are counted in.
    """
    if not Path(location).is_dir():
        parameters = model_size(load_skeleton(location, revision)).parameters
        return Size(parameters, parameters * DTYPES[dtype].itemsize)
    parameters = size = 0
    for file in sorted(Path(location).glob("*.safetensors")):
        size += file.stat().st_size
        with safe_open(file, framework="pt") as tensors:
            parameters += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return Size(parameters, size)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
