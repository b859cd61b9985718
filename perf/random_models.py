"""Llamas with random weights, dense or factorised: speed and memory do not depend on the weights' values."""

from typing import Any

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.ranks.policies.base import policies
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import get_linear, replace_module

LLAMA2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
TINY = LLAMA2_7B | {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def random_llama(shape: dict[str, int], ratio: float, dtype: torch.dtype, device: str) -> Any:
    """Return a Llama for evaluation, made on the device itself, factorised where the ratio is above 1.

    Args:
        shape: fields of `transformers.LlamaConfig`.
        ratio: over the whole model; ranks are the uniform policy's.
        dtype, device: of the weights.
    """
    config = transformers.LlamaConfig(**shape, tie_word_embeddings=False)
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config)
    model = model.to(dtype)
    if ratio > 1:
        allocation = Budget(ratio).allocate(create_method("svd").shape(model, ratio), policies.get("uniform")())
        for name, rank in allocation.ranks.items():
            dense = get_linear(model, name)
            size = (dense.in_features, dense.out_features, rank)
            replace_module(model, name, LowRankLinear(*size, dtype=dtype, device="meta"))
    model = model.to_empty(device=device)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)  # its buffers are computed, not random
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1)
    return model.eval()
