"""Factorised models for the vLLM tests, their dense twins, and the tokens that transformers makes with them."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.embedding import LowRankEmbedding
from lowrank_bench.models.export import multiply_out
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import (
    embedding_matrix,
    get_linear,
    install_embedding,
    low_rank_layers,
    matrices,
    replace_module,
)

WIDTH = 128  # heads 32 wide, the narrowest that vLLM's CPU attention has
NEW = 16
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
"""Of a process that runs vLLM on a small machine."""


def factorise(model: Any, only: tuple[str, ...] = ("",)) -> Any:
    """Replace the matrices whose names end so by their best factors, every one of a different rank than the last."""
    for number, matrix in enumerate(matrices(model)):
        if matrix.name.endswith(only):
            dense = get_linear(model, matrix.name)
            rank = min(matrix.out_features, matrix.in_features) // 2 - number % 5
            u, s, v = torch.linalg.svd(dense.weight.detach().float(), full_matrices=False)
            layer = LowRankLinear.from_factors(v[:rank].contiguous(), (u * s)[:, :rank].contiguous(), dense.bias)
            replace_module(model, matrix.name, layer)
    return model


def factorise_embedding(model: Any) -> Any:
    """Factorise all matrices, the token embedding and with it the tied head among them."""
    embedding = embedding_matrix(model)
    factorise(model)
    dense = model.get_submodule(embedding.name)
    rank = embedding.in_features // 2 + 3
    u, s, v = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
    layer = LowRankEmbedding.from_factors(v[:rank].contiguous(), (u * s)[:, :rank].contiguous(), dense)
    install_embedding(model, embedding, layer)
    return model


def dense_twin(model: Any) -> Any:
    """Return the same function with dense layers."""
    twin = copy.deepcopy(model)
    if any(isinstance(layer, LowRankEmbedding) for layer in low_rank_layers(twin).values()):
        multiply_out(twin)
        return twin
    for name, layer in low_rank_layers(twin).items():
        dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        dense.weight.data = layer.dense_weight()
        if layer.bias is not None:
            dense.bias = layer.bias
        replace_module(twin, name, dense)
    return twin


def mixed_llama() -> Any:
    """A Llama with all that the format allows.

    q and k share their first factor; o of layer 1 uses that of layer 0, gate of layer 1 that of layer 0 too; up adds
    a bias and so does o of layer 0; v of layer 1 and down of layer 0 stay dense.
    """
    model = random_model("llama", width=WIDTH)
    generator = torch.Generator().manual_seed(5)

    def put(name: str, rank: int, owner: str = "", added: bool = False) -> None:
        dense = get_linear(model, name)
        a = torch.randn(rank, dense.in_features, generator=generator) / dense.in_features**0.5
        b = torch.randn(dense.out_features, rank, generator=generator) / rank**0.5
        source = low_rank_layers(model)[owner] if owner else None
        bias = torch.randn(dense.out_features, generator=generator) / 4 if added else None
        replace_module(model, name, LowRankLinear.from_factors(a, b, dense.bias, bias, source))

    first, second = "model.layers.0", "model.layers.1"
    put(f"{first}.self_attn.q_proj", 40)
    put(f"{first}.self_attn.k_proj", 40, f"{first}.self_attn.q_proj")
    put(f"{first}.self_attn.v_proj", 23)
    put(f"{first}.self_attn.o_proj", 37, added=True)
    put(f"{first}.mlp.gate_proj", 51)
    put(f"{first}.mlp.up_proj", 30, added=True)
    put(f"{second}.self_attn.q_proj", 40, f"{first}.self_attn.q_proj")
    put(f"{second}.self_attn.k_proj", 19)
    put(f"{second}.self_attn.o_proj", 37, f"{first}.self_attn.o_proj")
    put(f"{second}.mlp.gate_proj", 51, f"{first}.mlp.gate_proj")
    put(f"{second}.mlp.up_proj", 33)
    put(f"{second}.mlp.down_proj", 61)
    put("lm_head", 45)
    return model


def initialised(config: Any) -> Any:
    """Return a random model whose matrices are large enough for its tokens to differ."""
    import transformers as tf

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.data.mul_(3.0)
    return model.eval()


def small_phi3() -> Any:
    """A Phi-3, whose qkv and gate_up are one matrix on disk too."""
    import transformers as tf

    config = tf.Phi3Config(
        vocab_size=96, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=3 * WIDTH, max_position_embeddings=64, original_max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return initialised(config)


def small_gemma3() -> Any:
    """A Gemma 3, which scales what its tied embedding looks up."""
    import transformers as tf

    config = tf.Gemma3TextConfig(
        vocab_size=96, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=WIDTH // 4, intermediate_size=3 * WIDTH, max_position_embeddings=64, sliding_window=16,
        query_pre_attn_scalar=WIDTH // 4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return initialised(config)


def widen_heads(model: Any, width: int = 32) -> Any:
    """Return the same Llama with wider heads, the added dimensions zero: stories260K has heads of 8.

    Rotary embedding turns dimensions i and i + d/2 by the frequency of i/d, so i goes where the wide head has the same
    frequency; queries are scaled, as attention divides by the root of the width.
    """
    import transformers as tf

    config = copy.deepcopy(model.config)
    narrow, heads, times = config.head_dim, config.num_attention_heads, width // config.head_dim
    config.head_dim = width
    half = torch.arange(narrow // 2) * times
    positions = torch.cat([half, half + width // 2])
    wide = tf.AutoModelForCausalLM.from_config(config).eval()
    state = model.state_dict()
    for name, tensor in state.items():
        count = heads if ".q_proj" in name or ".o_proj" in name else config.num_key_value_heads
        rows = (torch.arange(count)[:, None] * width + positions).flatten()
        if any(f".{part}_proj" in name for part in "qkv"):
            state[name] = torch.zeros(count * width, tensor.shape[1])
            state[name][rows] = tensor * (times**0.5 if ".q_proj" in name else 1)
        elif ".o_proj" in name:
            state[name] = torch.zeros(tensor.shape[0], count * width)
            state[name][:, rows] = tensor
    wide.load_state_dict(state)
    wide.generation_config = model.generation_config
    return wide


def served_models(data_dir: Path) -> Iterator[tuple[str, Any]]:
    """Yield factorised models by name."""
    classic = ("llama", "mistral", "qwen2", "gemma", "opt", "gpt-neox")
    for architecture in (*classic, "llama3", "qwen3", "smollm3", "olmo2", "qwen3-moe"):
        yield architecture, factorise(random_model(architecture, width=WIDTH))
    yield "phi3", factorise(small_phi3())
    yield "stories260K", factorise(widen_heads(load_model(data_dir / "models" / "stories260K")))
    yield "mixed", mixed_llama()
    yield "llama-embedding", factorise_embedding(random_model("llama", tied=True, width=WIDTH))
    yield "qwen2-embedding", factorise_embedding(random_model("qwen2", tied=True, width=WIDTH))
    yield "gemma3-embedding", factorise_embedding(small_gemma3())


def prompts(count: int = 6) -> list[list[int]]:
    """Return token ids of different lengths; the last prompt fills a block of the prefix cache."""
    generator = torch.Generator().manual_seed(1)
    lengths = [3 + 2 * i for i in range(count - 1)] + [40]
    return [torch.randint(3, 90, (length,), generator=generator).tolist() for length in lengths]


def tokens(folder: Path) -> list[list[int]]:
    """Return what transformers generates greedily, one prompt at a time."""
    model = load_model(folder)
    model.generation_config.eos_token_id = None
    completions = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        completions.append(output[0, len(prompt) :].tolist())
    return completions


def save_pair(model: Any, folder: Path) -> None:
    """Write ``lowrank`` and, where a dense model can say the same, ``dense``."""
    save_checkpoint(model, None, folder / "lowrank")
    if all(layer.lr_bias is None for layer in low_rank_layers(model).values()):
        save_checkpoint(dense_twin(model), None, folder / "dense")
