"""Shapes of models that plans are made for without a hub: those of the presets, and of the papers' other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..foundation.errors import UserError
from .loading import build_skeleton
from .presets import PRESETS, ModelSource


def _shapes(
    model_type: str, sizes: tuple[int, ...], vocabulary: int, context: int, tied: bool = False, **more: Any
) -> dict[str, Any]:
    """Return what of ``config.json`` decides shapes and memory.

    Args:
        model_type: transformers' name of the architecture.
        sizes: hidden size, intermediate size, layers, heads, key/value heads.
        vocabulary: rows of the embedding.
        context: longest sequence, tokens.
        tied: whether the output head is the embedding.
        more: other entries, over the defaults for Llama.
    """
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        "model_type": model_type,
        **dict(zip(names, sizes, strict=True)),
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "dtype": "bfloat16",
        **more,
    }


def _llama2(*sizes: int, **more: Any) -> dict[str, Any]:
    return _shapes("llama", sizes, 32000, 4096, bos_token_id=1, eos_token_id=2, **{"dtype": "float16", **more})


def _llama3(*sizes: int, tied: bool, factor: float, **more: Any) -> dict[str, Any]:
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **scaling}
    ids: dict[str, Any] = {"bos_token_id": 128000, "eos_token_id": 128001}
    return _shapes("llama", sizes, 128256, 131072, tied, rope_parameters=rope, **ids, **more)


def _qwen(model_type: str, *sizes: int, context: int = 32768, tied: bool, **more: Any) -> dict[str, Any]:
    ids: dict[str, Any] = {"bos_token_id": 151643, "eos_token_id": 151643}
    return _shapes(model_type, sizes, 151936, context, tied, **{"rms_norm_eps": 1e-6, **_rope(1e6), **ids, **more})


def _gemma3(*sizes: int) -> dict[str, Any]:
    more: dict[str, Any] = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512, "rms_norm_eps": 1e-6}
    return _shapes("gemma3_text", sizes, 262144, 32768, tied=True, bos_token_id=2, eos_token_id=1, **more)


def _smollm2(*sizes: int, theta: float) -> dict[str, Any]:
    return _shapes("llama", sizes, 49152, 8192, tied=True, bos_token_id=0, eos_token_id=0, **_rope(theta))


def _olmo2(*sizes: int) -> dict[str, Any]:
    more = {"rms_norm_eps": 1e-6, "dtype": "float32", "bos_token_id": None, "eos_token_id": 100257, **_rope(5e5)}
    return _shapes("olmo2", sizes, 100352, 4096, **more)


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


_MISTRAL = (4096, 14336, 32, 32, 8)
_MISTRAL_IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
_PHI4_MINI = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _llama2(4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _llama2(5120, 13824, 40, 40, 40),
    "huggyllama/llama-7b": _llama2(4096, 11008, 32, 32, 32, max_position_embeddings=2048, rms_norm_eps=1e-6),
    "mistralai/Mistral-7B-v0.1": _shapes("mistral", _MISTRAL, 32000, 32768, sliding_window=4096, **_MISTRAL_IDS),
    "meta-llama/Llama-3.1-8B": _llama3(4096, 14336, 32, 32, 8, tied=False, factor=8.0),
    "meta-llama/Llama-3.2-1B": _llama3(2048, 8192, 16, 32, 8, tied=True, factor=32.0, head_dim=64),
    "meta-llama/Llama-3.2-3B": _llama3(3072, 8192, 28, 24, 8, tied=True, factor=32.0, head_dim=128),
    "Qwen/Qwen2.5-0.5B": _qwen("qwen2", 896, 4864, 24, 14, 2, tied=True),
    "Qwen/Qwen2.5-1.5B": _qwen("qwen2", 1536, 8960, 28, 12, 2, tied=True, context=131072),
    "Qwen/Qwen2.5-7B": _qwen("qwen2", 3584, 18944, 28, 28, 4, tied=False, context=131072, vocab_size=152064),
    "Qwen/Qwen3-0.6B-Base": _qwen("qwen3", 1024, 3072, 28, 16, 8, tied=True, head_dim=128),
    "Qwen/Qwen3-1.7B-Base": _qwen("qwen3", 2048, 6144, 28, 16, 8, tied=True, head_dim=128),
    "Qwen/Qwen3-8B-Base": _qwen("qwen3", 4096, 12288, 36, 32, 8, tied=False, head_dim=128),
    "google/gemma-3-270m": _gemma3(640, 2048, 18, 4, 1),
    "google/gemma-3-1b-pt": _gemma3(1152, 6912, 26, 4, 1),
    "mistralai/Mistral-7B-v0.3": _shapes(
        "mistral", _MISTRAL, 32768, 32768, sliding_window=None, **_rope(1e6), **_MISTRAL_IDS
    ),
    "microsoft/phi-4": _shapes(
        "phi3", (5120, 17920, 40, 40, 10), 100352, 16384, original_max_position_embeddings=16384, **_rope(250000.0)
    ),
    "microsoft/Phi-4-mini-instruct": _shapes(
        "phi3", (3072, 8192, 32, 24, 8), 200064, 131072, tied=True, rope_parameters=_PHI4_MINI
    ),
    "HuggingFaceTB/SmolLM2-135M": _smollm2(576, 1536, 30, 9, 3, theta=1e5),
    "HuggingFaceTB/SmolLM2-360M": _smollm2(960, 2560, 32, 15, 5, theta=1e5),
    "HuggingFaceTB/SmolLM2-1.7B": _smollm2(2048, 8192, 24, 32, 32, theta=1.3e5),
    "HuggingFaceTB/SmolLM3-3B-Base": _shapes(
        "smollm3", (2048, 11008, 36, 16, 4), 128256, 65536, tied=True, rms_norm_eps=1e-6, **_rope(5e6)
    ),
    "allenai/OLMo-2-0425-1B": _olmo2(2048, 8192, 16, 16, 16),
    "allenai/OLMo-2-1124-7B": _olmo2(4096, 11008, 32, 32, 32),
    "mistralai/Mixtral-8x7B-v0.1": _shapes(
        "mixtral", _MISTRAL, 32000, 32768, num_local_experts=8, num_experts_per_tok=2, **_rope(1e6), **_MISTRAL_IDS
    ),
    "Qwen/Qwen3-30B-A3B-Base": _qwen(
        "qwen3_moe", 2048, 6144, 48, 32, 4, tied=False, head_dim=128,
        moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
    ),
}  # fmt: skip
"""What of ``config.json`` decides shapes and memory, by hub id; of Phi-4 mini without the scaling of its positions."""

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
