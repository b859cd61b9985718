"""Loading models and tokenizers, dense and factorised, with errors that name the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..foundation.errors import UserError
from ..foundation.finite import all_finite
from .claims import claim, left_out_note
from .configs import load_config, reason
from .folder_checks import check_folder, check_tokenizer, layout_of, read_object
from .generation_defaults import read_generation_defaults
from .headers import INDEX, SINGLE, check_shapes, weight_files
from .hub import fetch_model
from .matrices import Size, low_rank_layers, model_size
from .notes import add_note, notes_of
from .tied import check_stored

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def own_dtype(config: Any) -> str:
    """Return the name of the dtype that a checkpoint says it is in; ``float32`` where it says nothing usable."""
    name = str(getattr(config, "dtype", None) or "").removeprefix("torch.")
    return name if name in DTYPES else "float32"


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

    # `from_pretrained` reads config.json by itself and does not know what `load_config` chose.
    eager = load_config(location, revision)._attn_implementation == "eager"
    settings, note = read_generation_defaults(location, revision)
    notes = notes_of(verify_folder(Path(location))) if Path(location).is_dir() else []
    folder = fetch_model(location, revision, weights=True)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype="auto" if dtype == "auto" else DTYPES[dtype],
            output_loading_info=True,
            # A misfit then ends in the report, and so in the sentence below, which names the tensor.
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            use_safetensors=True if Path(location).is_dir() else None,
            **({"attn_implementation": "eager"} if eager else {}),
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"the model '{location}' cannot be loaded ({reason(error)}); make or copy the checkpoint again, or name "
            "another model"
        ) from error
    # transformers fills both kinds with noise and goes on.
    absent, misfit = sorted(report["missing_keys"]), sorted(key for key, *_ in report["mismatched_keys"])
    if absent or misfit:
        raise UserError(
            f"the weights of '{location}' do not belong to its config.json: the tensor {(absent + misfit)[0]} "
            f"{'is missing' if absent else 'has another shape'}; make or copy the checkpoint again"
        )
    for name, layer in low_rank_layers(model).items():
        for key, factor in layer.named_parameters(recurse=False):
            if not all_finite(factor):
                raise UserError(
                    f"the tensor {name}.{key} of '{location}' holds NaN or infinity; make the checkpoint again"
                )
    unused = left_out_note(model, report["unexpected_keys"], str(location))
    for sentence in notes or [unused]:
        add_note(model, sentence)
    if model.can_generate():
        model.generation_config = settings
        add_note(model, note)
    return model.to(device).eval()


def load_tokenizer(location: str | Path, revision: str = "") -> Any:
    """Load the tokenizer that belongs to a model; a missing padding token is set to the end-of-sequence token."""
    from transformers import AutoTokenizer

    folder = fetch_model(location, revision)
    vocabulary = check_tokenizer(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        base = max(tokenizer.get_vocab().values(), default=-1) if vocabulary else 0
        added = set(tokenizer.added_tokens_decoder)
    except Exception as error:  # the tokenizers library raises bare exceptions for whatever it cannot read
        raise UserError(
            f"the tokenizer of '{location}' cannot be loaded ({reason(error)}); the model's folder needs its "
            "tokenizer files"
        ) from error
    if vocabulary and base >= vocabulary:
        # Added tokens beyond the embedding are common (Gemma 3's image token) and matter where a text holds them.
        needed = {tokenizer.bos_token_id, tokenizer.eos_token_id} | set(range(base + 1)) - added
        beyond = [token for token, i in tokenizer.get_vocab().items() if i >= vocabulary and i in needed]
        if beyond:
            raise UserError(
                f"the tokenizer of '{location}' gives {beyond[0]!a} an id above the vocab_size of config.json, "
                f"{vocabulary}; copy the tokenizer that belongs to the model"
            )
    pad = tokenizer.pad_token_id
    # Padding is looked up in the embedding too, although it is masked.
    if pad is None or (vocabulary and pad >= vocabulary):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_skeleton(location: str | Path, revision: str = "") -> nn.Module:
    """Build the model on the meta device: every shape, no weights, a few milliseconds.

    Raises:
        UserError: the configuration cannot be read or describes no causal language model.
    """
    config = load_config(location, revision)
    if Path(location).is_dir():
        read_generation_defaults(location)
    skeleton = build_skeleton(config, str(location))
    if Path(location).is_dir() and (headers := check_folder(Path(location))):
        announced = layout_of(read_object(Path(location) / "config.json"))
        check_shapes(skeleton, headers, announced, str(location))
        claims = claim(skeleton, headers, str(location), announced)
        check_stored(skeleton, headers, claims, announced, str(location))
        add_note(skeleton, claims.note)
    return skeleton


def build_skeleton(config: Any, location: str) -> nn.Module:
    """Build a model of this configuration on the meta device.

    Args:
        config: transformers' configuration.
        location: of the model, for messages.

    Raises:
        UserError: transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # wrong numbers in a foreign configuration end in errors of many kinds
        raise UserError(
            f"the configuration of '{location}' describes no causal language model that transformers can build "
            f"({reason(error)}); name another model"
        ) from error
    return cast(nn.Module, skeleton)


def verify_folder(folder: Path) -> nn.Module:
    """Check that a model folder is whole before anything is loaded.

    transformers fills missing tensors with noise and only warns, so every safetensors file is opened, every file that
    an index names must exist, and every tensor must have the shape that ``config.json`` announces and a module that
    uses it. Nothing is allocated: headers are compared with a model on the meta device.

    Returns:
        That model, see `load_skeleton`; `notes_of` it are what a loaded model should carry.

    Raises:
        UserError: names the file and the tensor or field.
    """
    if not check_folder(folder):
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}; make the checkpoint again")
    return load_skeleton(folder)


def weights_size(location: str | Path, revision: str = "") -> Size:
    """Return parameters and bytes of a model's weights: from its safetensors files, or for a hub id from its shape.

    Of a folder only the files that loaders read are counted, and of those not what the model leaves out.

    Args:
        location: folder or hub id.
        revision: hub commit; the bytes of a hub model are counted in the dtype that its configuration names.
    """
    if not Path(location).is_dir():
        skeleton = cast(Any, load_skeleton(location, revision))
        parameters = model_size(skeleton).parameters
        return Size(parameters, parameters * DTYPES[own_dtype(skeleton.config)].itemsize)
    folder = Path(location)
    skeleton, headers = verify_folder(folder), check_folder(folder)
    layout = layout_of(read_object(folder / "config.json"))
    unused = [headers[name] for name in claim(skeleton, headers, str(folder), layout).left_out]
    parameters = sum(header.parameters for header in headers.values())
    size = sum(file.stat().st_size for file in weight_files(folder))
    return Size(parameters - sum(header.parameters for header in unused), size - sum(header.bytes for header in unused))
