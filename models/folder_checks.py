"""What is checked of a model's folder before any library reads it: kinds of files, JSON, and fields that choose code.

Reads headers and JSON only; imports neither torch nor transformers. `check_folder` is the one door.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from ..foundation.checksums import LARGE_BYTES, remembered_sha256
from ..foundation.errors import UserError
from ..foundation.files import digest
from ..foundation.remembered import remembered
from .generation_defaults import GENERATION_FILE, check_token_ids
from .headers import Header, read_headers, weight_files
from .layout import LOWRANK, Layout, check_tensors

ADAPTER_FILE = "adapter_config.json"
"""Where transformers finds it, it loads the adapter as well, and saving writes the adapter alone."""

_READ_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")
_JSON_BYTES = 256 << 20
_CONFIG_BYTES = 16 << 20
_JSON_DEPTH = 64
_AGAIN = "make or copy the checkpoint again"

_ATTENTION = ("eager", "sdpa", "flex_attention")
_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Without its package transformers would fetch a kernel of that kind from the hub."""
_EXPERTS = ("eager", "batched_mm", "grouped_mm")
_ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_EXPERTS_FIELDS = ("experts_implementation", "_experts_implementation", "_experts_implementation_internal")
_CODE_FIELDS = ("custom_generate", "use_kernels", "kernel_config", "configuration_files", "transformers_weights")
_QUANTISED_FIELDS = ("quantization_config", "compression_config")

_LAYER_FIELDS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_WIDTH_FIELDS = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "n_inner", "vocab_size"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "num_experts", "num_local_experts"),
)


def check_folder(folder: Path) -> dict[str, Header]:
    """Check a model's folder as far as it can be without building the model; returns the headers of its tensors.

    Files must be ordinary files, JSON must be readable, ``config.json`` must choose no code and no foreign
    quantisation, and the headers of safetensors files must belong to it. A folder without weights has no headers.

    Raises:
        UserError: names the file and the field or tensor.
    """
    # Before anything below opens a file.
    check_files(folder)
    check_no_adapter(folder)
    config = read_object(folder / "config.json")
    check_config(config, str(folder / "config.json"))
    for name in (GENERATION_FILE, "tokenizer_config.json"):
        if (folder / name).exists():
            settings = read_object(folder / name)
            _check_code_fields(settings, str(folder / name))
            if name == GENERATION_FILE:
                check_token_ids(settings, str(folder / name))
    if (folder / "hf_quant_config.json").exists():
        raise _quantised(str(folder / "hf_quant_config.json"), "modelopt")
    layout = layout_of(config)
    files = weight_files(folder)
    if not files:
        return {}
    headers = read_headers(files)
    if layout is not None:
        check_tensors(layout, {name: header.shape for name, header in headers.items()}, str(folder))
    _check_sizes(config, headers, str(folder / "config.json"))
    return headers


def check_no_adapter(folder: Path) -> None:
    """Check that a folder holds a model rather than a peft adapter, or both.

    Raises:
        UserError: says how to merge them.
    """
    if os.path.lexists(folder / ADAPTER_FILE):
        raise adapter_beside(str(folder))


def adapter_beside(location: str) -> UserError:
    """Return the error of a folder or hub model that holds a peft adapter: how to merge it, or to do without."""
    folder = str(Path(location).resolve()) if Path(location).is_dir() else Path(location).name
    load, without = f"AutoPeftModelForCausalLM.from_pretrained({location!r})", ""
    if (Path(location) / "config.json").is_file():  # peft would apply it twice to a base in the same folder
        load = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({location!r}), '{folder}-adapter')"
        without = f"move adapter_* into '{folder}-adapter' to use the model alone, or then "
    return UserError(
        f"'{location}' holds {ADAPTER_FILE}, a peft adapter, which some loaders apply and others do not; {without}"
        f"merge both with peft, {load}.merge_and_unload().save_pretrained('{folder}-merged'), copy the tokenizer's "
        f"files there, and name '{folder}-merged'"
    )


def layout_of(config: Mapping[str, Any]) -> Layout | None:
    """Return what ``config.json`` says of factors, None for a dense model.

    Raises:
        UserError: see `Layout.read`.
    """
    announced = config.get("quantization_config")
    return Layout.read(announced) if announced and announced.get("quant_method") == LOWRANK else None


def check_files(folder: Path) -> None:
    """Check that what loaders open is an ordinary file or leads to one: a FIFO would hang them, a device fill memory.

    Raises:
        UserError: names the file.
    """
    extra = folder / "additional_chat_templates"
    for file in [*folder.iterdir(), *(extra.iterdir() if extra.is_dir() else ())]:
        if file.suffix not in _READ_SUFFIXES:
            continue
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"{file} leads nowhere ({error.strerror}); {_AGAIN}") from error
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{file} is no ordinary file (a folder, pipe or device); {_AGAIN}")
        most = _CONFIG_BYTES if file.name.endswith("config.json") else _JSON_BYTES
        if file.suffix == ".json" and status.st_size > most:
            raise UserError(f"{file} has {status.st_size:,} bytes, at most {most:,} are read; {_AGAIN}")


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: it cannot be read, holds something else, or is nested deeper than configurations are.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
        if _deeper(content, _JSON_DEPTH):
            raise ValueError(f"it is nested deeper than {_JSON_DEPTH} levels")
    except RecursionError as error:
        raise UserError(f"{file} cannot be read (it is nested too deeply); {_AGAIN}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); {_AGAIN}") from error
    return content


def check_config(config: Mapping[str, Any], file: str) -> None:
    """Check that a configuration names its model, chooses no code and no quantisation but ours.

    Args:
        config: the plain data of ``config.json``.
        file: named in the error.

    Raises:
        UserError: names the field.
    """
    if not isinstance(config.get("model_type"), str):
        raise UserError(
            f"{file} has the model_type {_quoted(config.get('model_type'))}, not the name of an architecture; {_AGAIN}"
        )
    _check_code_fields(config, file)
    for path, key, value in _fields(config):
        if key in _QUANTISED_FIELDS and value:
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            if not isinstance(value, Mapping) or not isinstance(method, str):
                raise UserError(
                    f"the {path} of {file} is {_quoted(value)}, not an object with a quant_method; {_AGAIN}"
                )
            if method != LOWRANK or path != "quantization_config":
                raise _quantised(f"the {path} of {file}", method)


def check_tokenizer(folder: Path) -> int | None:
    """Check the JSON files of a tokenizer; returns the model's vocabulary size, None where no config.json says it.

    Raises:
        UserError: a file that is no JSON object, or that chooses code; names it.
    """
    check_files(folder)
    if (folder / "tokenizer.json").exists():
        _check_object(folder / "tokenizer.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            settings = read_object(folder / name)
            if name == "tokenizer_config.json":
                _check_code_fields(settings, str(folder / name))
    if not (folder / "config.json").exists():
        return None
    config = read_object(folder / "config.json")
    text = config.get("text_config") or {}
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, Mapping) else None)
    return size if type(size) is int else None


def _check_object(file: Path) -> None:
    """Check a JSON file as `read_object` does; a large one that passed is not parsed again until its bytes change."""
    try:
        sha256 = remembered_sha256(file) if file.stat().st_size >= LARGE_BYTES else ""
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error}); {_AGAIN}") from error
    if not sha256:
        read_object(file)
        return
    remembered(digest(["JSON object", _JSON_DEPTH, sha256]), lambda: len(read_object(file)))


def _check_code_fields(config: Mapping[str, Any], file: str) -> None:
    for path, key, value in _fields(config):
        if key in _ATTENTION_FIELDS or key in _EXPERTS_FIELDS:
            attention = key in _ATTENTION_FIELDS
            for chosen in value.values() if isinstance(value, Mapping) else (value,):
                if not _is_built_in(chosen, attention):
                    built_in = ", ".join((*_ATTENTION, *_FLASH) if attention else _EXPERTS)
                    raise UserError(
                        f"the {path} of {file} is {_quoted(chosen)}, which is not built in or not installed, and a "
                        f"model's folder must not choose code to load; remove the field, or use one of {built_in}"
                    )
        elif key in _CODE_FIELDS and value:
            raise UserError(
                f"the {path} of {file} is {_quoted(value)}, and a model's folder must not choose what code or which "
                "files are loaded; remove the field"
            )
        elif key == "auto_map" and not isinstance(value, (Mapping, list, type(None))):
            raise UserError(f"the {path} of {file} is {_quoted(value)}, not an object; remove the field")


def _is_built_in(chosen: Any, attention: bool) -> bool:
    if chosen is None or chosen in (list(_ATTENTION) if attention else list(_EXPERTS)):
        return True
    return attention and isinstance(chosen, str) and chosen in _FLASH and find_spec(_FLASH[chosen]) is not None


def _quantised(source: str, method: str) -> UserError:
    return UserError(
        f"{source} says that the weights are quantised by {_quoted(method)}, which lowrank-bench does not read; name "
        "the model as it was before quantisation"
    )


def _check_sizes(config: Mapping[str, Any], headers: Mapping[str, Header], file: str) -> None:
    """Check numbers against what is stored, so that a wrong one cannot fill memory while the model is built."""
    parameters = sum(header.parameters for header in headers.values())
    for path, key, value in _fields(config):
        if key not in (*_LAYER_FIELDS, *_WIDTH_FIELDS) or ("." in path and not path.startswith("text_config.")):
            continue
        if value is None or isinstance(value, list):
            continue
        # A layer has at least one tensor; a width or a number of heads or experts is at most the number of all weights.
        most = len(headers) if key in _LAYER_FIELDS else max(parameters, len(headers))
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            stored = f"{len(headers):,} tensors" if key in _LAYER_FIELDS else f"{parameters:,} weights"
            raise UserError(f"the {path} of {file} is {_quoted(value)}, but the files hold {stored}; {_AGAIN}")


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (dotted path, name, value) of every field, nested ones too."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            own = f"{path}.{key}" if path else str(key)
            yield own, str(key), inner
            # What is inside belongs to the quantisation, which `check_config` judges as a whole.
            if key not in _QUANTISED_FIELDS:
                yield from _fields(inner, own)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _fields(inner, f"{path}.{number}")


def _deeper(value: Any, levels: int) -> bool:
    """Return whether something is nested deeper; level by level, as a tokenizer's file has a million lists."""
    level = [value]
    for _ in range(levels + 1):
        parts = chain.from_iterable(part.values() if type(part) is dict else part for part in level)
        level = [part for part in parts if type(part) is list or type(part) is dict]
        if not level:
            return False
    return True


def _quoted(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
