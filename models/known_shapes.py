"""Shapes of models that plans are made for without a hub: those of the presets, and of the papers' other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..foundation.errors import UserError
from .loading import build_skeleton
from .presets import PRESETS, ModelSource

_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float16",
}
_LLAMA_13B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "dtype": "bfloat16",
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _LLAMA,
    "meta-llama/Llama-2-13b-hf": {**_LLAMA, **_LLAMA_13B},
    "huggyllama/llama-7b": {**_LLAMA, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "mistralai/Mistral-7B-v0.1": {**_LLAMA, **_MISTRAL},
}
"""What of ``config.json`` decides shapes and memory, by hub id."""

_COMPARED = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings", "tie_word_embeddings"),
)


def known_skeleton(hub_id: str) -> nn.Module:
    """Build a model of `SHAPES` on the meta device, without the hub."""
    from transformers import CONFIG_MAPPING

    shapes = dict(SHAPES[hub_id])
    config: Any = CONFIG_MAPPING[shapes["model_type"]].from_dict(shapes)
    return build_skeleton(config, hub_id)


def check_preset(source: ModelSource, config: Any) -> None:
    """Raise a `UserError` if the hub's configuration of a preset is not what the preset's shapes say.

    Args:
        source: the model; only presets at their own commit are judged.
        config: as loaded from the hub.
    """
    if (source.location, source.revision) not in {(p.source, p.revision) for p in PRESETS.values() if p.revision}:
        return
    for name in _COMPARED:
        value, known = getattr(config, name, None), SHAPES[source.location][name]
        if value != known:
            raise UserError(
                f"config.json of {source.location} at {source.revision[:12]} says {name} {value}, and the preset "
                f"{known}; the copy on this machine or the hub's is another model: delete it from the cache and load "
                "it again, or name a folder with --model DIR"
            )
