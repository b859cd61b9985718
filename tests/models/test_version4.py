"""Dense exports in version 4 of transformers, by what the configuration classes of 4.57.6 read from the files.

Logits were compared with that version itself once (docs/serving.md); here are its classes' arguments.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.export import export_dense
from lowrank_bench.models.headers import read_headers
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import get_linear, matrices, replace_module
from lowrank_bench.models.version4 import add_version_4_keys, tokenizer_keys

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LAYERS = ["sliding_attention", "full_attention"]
DEFAULT = {"rope_type": "default"}


def config_of(kind: str, rope: dict[str, Any], **more: Any) -> Any:
    return getattr(transformers, kind)(**SIZES, max_position_embeddings=256, rope_parameters=rope, **more)


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of("LlamaConfig", {**LLAMA3, "rope_theta": 5e5}), {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        (config_of("LlamaConfig", {**DEFAULT, "rope_theta": 1e6}), {"rope_theta": 1e6, "rope_scaling": None}),
        (config_of("Qwen3Config", {**YARN, "rope_theta": 1e6}), {"rope_theta": 1e6, "rope_scaling": YARN}),
        (
            config_of("StableLmConfig", {**DEFAULT, "rope_theta": 3e4, "partial_rotary_factor": 0.5}),
            {"rope_theta": 3e4, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
        (
            config_of("GPTNeoXConfig", {**DEFAULT, "rope_theta": 7e4, "partial_rotary_factor": 0.5}),
            {"rotary_emb_base": 7e4, "rotary_pct": 0.5, "rope_scaling": None},
        ),
        (
            config_of(
                "Gemma3TextConfig",
                {"full_attention": {**LINEAR, "rope_theta": 5e5}, "sliding_attention": {**DEFAULT, "rope_theta": 2e4}},
                layer_types=LAYERS,
            ),
            {"rope_theta": 5e5, "rope_scaling": LINEAR, "rope_local_base_freq": 2e4},
        ),
    ],
    ids=["llama3", "theta", "yarn", "partial", "neox", "gemma3"],
)
def test_version_4_finds_rotary_positions_and_version_5_the_same_as_before(
    tmp_path: Path, config: Any, expected: dict[str, Any]
) -> None:
    config.save_pretrained(tmp_path)
    before = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
    add_version_4_keys(tmp_path)
    written = read(tmp_path / "config.json")
    assert {name: written.get(name) for name in expected} == expected
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == before == config.rope_parameters


@pytest.mark.parametrize(
    "config",
    [
        config_of(
            "Gemma3TextConfig",
            {"full_attention": {**DEFAULT, "rope_theta": 5e5}, "sliding_attention": {**LINEAR, "rope_theta": 2e4}},
            layer_types=LAYERS,
        ),
        config_of(
            "Phi3Config",
            {"rope_type": "longrope", "rope_theta": 2e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
            | {"original_max_position_embeddings": 64, "partial_rotary_factor": 1.0},
            original_max_position_embeddings=64,
            pad_token_id=0,
        ),
        transformers.OPTConfig(),
    ],
    ids=["scaled local attention", "longrope of Phi-3", "no rotary positions"],
)
def test_what_only_version_5_can_say_stays_as_it_is(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(tmp_path)
    before = read(tmp_path / "config.json")
    add_version_4_keys(tmp_path)
    assert read(tmp_path / "config.json") == before


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"tokenizer_class": "TokenizersBackend"}, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ({"tokenizer_class": "GemmaTokenizer"}, {}),
        ({"extra_special_tokens": ["<a>"]}, {"additional_special_tokens": ["<a>"]}),
        ({"extra_special_tokens": {"image_token": "<i>"}}, {}),
    ],
    ids=str,
)
def test_tokenizers_have_a_class_that_version_4_knows(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert tokenizer_keys(config) == expected


def test_an_export_has_both_forms_and_the_hub_s_names_of_tensors(tmp_path: Path) -> None:
    """GPT-NeoX's head is ``embed_out`` on the hub and ``lm_head`` in version 5: version 4 would draw a random one."""
    model = random_model("gpt-neox")
    for matrix in matrices(model):
        dense = get_linear(model, matrix.name)
        a, b = torch.randn(5, matrix.in_features), torch.randn(matrix.out_features, 5)
        replace_module(model, matrix.name, LowRankLinear.from_factors(a, b, dense.bias, None))
    tokens = {"<s>": 0, "</s>": 1, "a": 2}
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(tokens, unk_token="a")),
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["a"],
    )
    save_checkpoint(model, tokenizer, tmp_path / "low")
    assert read(tmp_path / "low" / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"

    export_dense(tmp_path / "low", tmp_path / "dense")
    assert read(tmp_path / "dense" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read(tmp_path / "dense" / "config.json")["rotary_emb_base"] == 10_000
    names = read_headers([tmp_path / "dense" / "model.safetensors"])
    assert "embed_out.weight" in names
    assert "lm_head.weight" not in names
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "dense")
    assert again.convert_tokens_to_ids(["<s>", "a"]) == [0, 2]
    assert again.extra_special_tokens == tokenizer.extra_special_tokens == ["a"]
