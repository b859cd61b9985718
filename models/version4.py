"""What version 4 of transformers reads elsewhere: keys of a dense export's files that version 5 writes no more.

Version 5 keeps everything about rotary positions in ``rope_parameters``, which version 4 skips without a word, so that
it takes its class's default base; and it names tokenizer classes that version 4 does not have. Sources: the
configuration classes of transformers 4.57.6 (``configuration_llama.py``, ``_gemma3.py``, ``_gpt_neox.py``,
``_phi3.py``) and ``RotaryEmbeddingConfigMixin.convert_rope_params_to_dict`` of 5.19.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from ..foundation.files import read_json, write_atomic

_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
_MOVED = ("rope_theta", "partial_rotary_factor")  # of ``rope_parameters``, to the top level
_NEOX_NAMES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def config_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that say in version 4 what ``rope_parameters`` says in version 5; empty where nothing can.

    Args:
        config: what ``config.json`` holds.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    keys: dict[str, Any] = {}
    if _GLOBAL in rope:
        local = rope.get(_LOCAL) or {}
        if local.get("rope_type", "default") != "default":
            return {}  # version 4 scales the positions of global attention alone
        if "rope_theta" in local:
            keys["rope_local_base_freq"] = local["rope_theta"]
        rope = rope[_GLOBAL]
    keys |= {name: rope[name] for name in _MOVED if name in rope}
    if config.get("model_type") == "gpt_neox":
        keys |= {_NEOX_NAMES[name]: keys.pop(name) for name in _MOVED if name in keys}
    if rope.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {name: value for name, value in rope.items() if name not in _MOVED}
        if config.get("model_type") == "phi3":  # its class takes these three and the length at the top level
            factors = {name: rope.get(name) for name in ("short_factor", "long_factor")}
            keys["rope_scaling"] = {"type": rope["rope_type"], **factors}
            keys["original_max_position_embeddings"] = rope.get("original_max_position_embeddings")
    return keys


def tokenizer_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of ``tokenizer_config.json`` that version 4 needs otherwise; version 5 reads both forms alike.

    Args:
        config: what the file holds.
    """
    keys: dict[str, Any] = {}
    if config.get("tokenizer_class") in _TOKENIZER_CLASSES:
        keys["tokenizer_class"] = _TOKENIZER_CLASSES[config["tokenizer_class"]]
    if isinstance(config.get("extra_special_tokens"), list):  # there it is a mapping from names
        keys["additional_special_tokens"] = config["extra_special_tokens"]
    return keys


def add_version_4_keys(folder: Path) -> None:
    """Add to a dense model's folder what version 4 reads; version 5 must read the same as before, or nothing is added.

    Args:
        folder: with ``config.json`` and perhaps ``tokenizer_config.json``, which are written again.
    """
    file = folder / "config.json"
    config = read_json(file)
    written = config | config_keys(config)
    # Only where version 5 reads the same rotary parameters with the second names beside the first.
    if written != config and _rope(written) == _rope(config):
        _write(file, written)
    file = folder / "tokenizer_config.json"
    if file.is_file():
        config = read_json(file)
        if keys := tokenizer_keys(config):
            if "additional_special_tokens" in keys:
                del config["extra_special_tokens"]
            _write(file, config | keys)


def _write(file: Path, config: dict[str, Any]) -> None:
    # As transformers does, infinite numbers included.
    write_atomic(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _rope(config: dict[str, Any]) -> Any:
    """Return the rotary parameters as the installed transformers reads them, or None where it refuses them."""
    try:
        kind = type(transformers.AutoConfig.for_model(config["model_type"]))
        return kind.from_dict(copy.deepcopy(config)).to_dict().get("rope_parameters")
    except (KeyError, ValueError, TypeError):
        return None
