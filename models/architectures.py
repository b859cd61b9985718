"""Tiny random models of every architecture that a method has to work on."""

from typing import Any

import torch

CLASSIC = ("llama", "mistral", "qwen2", "gemma", "gpt-neox", "opt")
"""Llama with grouped-query attention and an untied head, Mistral, Qwen2 (q, k, v bias), Gemma (tied), GPT-NeoX, OPT."""

TODAY = ("llama3", "qwen3", "gemma3", "phi3", "smollm3", "olmo2")
"""Llama 3 (scaled rotary positions, tied), Qwen3 (normed queries and keys), Gemma 3 (tied, sliding window), Phi-3 and
Phi-4 (q, k, v in one matrix, gate and up too), SmolLM3 (a layer without positions, tied), OLMo 2 (late norms)."""

MIXTURES = ("mixtral", "qwen3-moe")
"""Mixtures of experts, whose experts are one tensor of three dimensions; Qwen3's has a dense layer too."""

ARCHITECTURES = CLASSIC + TODAY + MIXTURES

IN_PLACE = ("falcon", "falcon-new")
"""Falcon, which adds to outputs of its layers in place; its first form (one key for all queries) and its later one.
In no list of the above: what they add to those is this alone."""


def random_model(
    architecture: str, tied: bool | None = None, dtype: torch.dtype = torch.float32, seed: int = 0, width: int = 32
) -> Any:
    """Build a two-layer model of a few thousand random parameters.

    Args:
        architecture: one of `ARCHITECTURES` or `IN_PLACE`.
        tied: whether input and output embeddings are one tensor; None keeps the architecture's habit.
        dtype: dtype of all parameters.
        seed: seed of the weights (the global random state is left as it was).
        width: hidden size, a multiple of 8.
    """
    import transformers as tf

    common: dict[str, Any] = {"vocab_size": 96, "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4}
    gated = common | {"intermediate_size": 3 * width, "num_key_value_heads": 2, "max_position_embeddings": 64}
    tie = {} if tied is None else {"tie_word_embeddings": tied}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config: Any
    match architecture:
        case "llama":
            config = tf.LlamaConfig(**gated, **({"tie_word_embeddings": False} | tie), **ids)
        case "mistral":
            config = tf.MistralConfig(**gated, **({"tie_word_embeddings": False} | tie), **ids)
        case "qwen2":
            config = tf.Qwen2Config(**gated, **tie, **ids)
        case "gemma":
            config = tf.GemmaConfig(**gated, head_dim=width // 4, **tie, **ids)
        case "llama3":
            scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
            rope = scaling | {"rope_type": "llama3", "original_max_position_embeddings": 16}
            config = tf.LlamaConfig(**gated, **({"tie_word_embeddings": True} | tie), rope_parameters=rope, **ids)
        case "qwen3":
            config = tf.Qwen3Config(**gated, head_dim=width // 4, **tie, **ids)
        case "gemma3":
            config = tf.Gemma3TextConfig(
                **gated, head_dim=width // 4, query_pre_attn_scalar=width // 4, sliding_window=8, **tie, **ids,
                layer_types=["sliding_attention", "full_attention"],
            )  # fmt: skip
        case "phi3":
            rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
            config = tf.Phi3Config(**gated, original_max_position_embeddings=64, rope_parameters=rope, **tie, **ids)
        case "smollm3":
            config = tf.SmolLM3Config(**gated, no_rope_layers=[1, 0], **tie, **ids)
        case "olmo2":
            config = tf.Olmo2Config(**gated, **tie, **ids)
        case "mixtral":
            experts = {"intermediate_size": width // 8, "num_local_experts": 4, "num_experts_per_tok": 2}
            config = tf.MixtralConfig(**(gated | experts), **tie, **ids)
        case "qwen3-moe":
            experts = {"moe_intermediate_size": width // 8, "num_experts": 4, "num_experts_per_tok": 2}
            config = tf.Qwen3MoeConfig(
                **gated, **experts, head_dim=width // 4, mlp_only_layers=[0], norm_topk_prob=True, **tie, **ids
            )
        case "gpt-neox":
            config = tf.GPTNeoXConfig(**common, intermediate_size=4 * width, max_position_embeddings=64, **tie, **ids)
        case "opt":
            config = tf.OPTConfig(
                **common, ffn_dim=4 * width, max_position_embeddings=64, word_embed_proj_dim=width, **tie, **ids
            )
        case "falcon" | "falcon-new":
            config = tf.FalconConfig(
                **common, ffn_hidden_size=4 * width, max_position_embeddings=64, num_kv_heads=2,
                new_decoder_architecture=architecture == "falcon-new", **tie, **ids,
            )  # fmt: skip
        case _:
            raise ValueError(f"no architecture '{architecture}'; there are {', '.join(ARCHITECTURES + IN_PLACE)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    # Fresh models have zero biases and unit norms, under which a lost bias would go unseen.
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif "embed" not in name:
                    parameter.mul_(3.0)
                # Parameters only, as in loading: rotary frequencies stay in float32.
                parameter.data = parameter.data.to(dtype)
    return model.eval()
