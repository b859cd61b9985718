"""Dense exports: the same function, in a folder that plain transformers loads."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.export import export_dense, is_factorised
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.matrices import get_linear, matrices, model_size, replace_module
from lowrank_bench.models.presets import PRESETS

IDS = list(range(5, 17))
PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM
for line in sys.stdin:
    folder, ids = json.loads(line)
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(found.values()), found
    assert not any(name.startswith("lowrank_bench") for name in sys.modules)
    print(json.dumps(model(torch.tensor([ids])).logits[0].tolist()), flush=True)
"""
PlainLogits = Callable[[Path], torch.Tensor]


@pytest.fixture(scope="module")
def plain_logits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainLogits]:
    """Loads folders in a process that never sees this package, as where it is not installed."""
    command = [sys.executable, "-c", PLAIN]
    alone = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # else torch's entry point imports it
    with (
        (tmp_path_factory.mktemp("plain") / "errors").open("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd="/", env=alone
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(folder: Path) -> torch.Tensor:
            print(json.dumps([str(folder), IDS]), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            errors.seek(0)
            assert answer, errors.read()
            return torch.tensor(json.loads(answer))

        yield ask
        process.stdin.close()


def factorised(architecture: str, added: tuple[str, ...] = (), **options: Any) -> Any:
    """A model with every matrix factorised and biases added where a dotted name ends in one of ``added``."""
    torch.manual_seed(0)
    model = random_model(architecture, **options)
    for matrix in matrices(model):
        dense = get_linear(model, matrix.name)
        a, b = torch.randn(5, matrix.in_features) * 0.3, torch.randn(matrix.out_features, 5) * 0.3
        bias = torch.randn(matrix.out_features) if matrix.name.endswith(added or ("?",)) else None
        layer = LowRankLinear.from_factors(a, b, dense.bias, bias)
        replace_module(model, matrix.name, layer.to(dense.weight.dtype))
    return model


def own_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].float()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_transformers_gives_the_same_logits(tmp_path: Path, architecture: str, plain_logits: PlainLogits) -> None:
    model = factorised(architecture)
    save_checkpoint(model, None, tmp_path / "small")
    size = export_dense(tmp_path / "small", tmp_path / "dense")
    assert size.parameters == model_size(random_model(architecture)).parameters
    torch.testing.assert_close(plain_logits(tmp_path / "dense"), own_logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("added", [("q_proj",), ("down_proj",), ("k_proj", "up_proj")])
def test_added_biases_take_the_flag_of_the_architecture(
    tmp_path: Path, added: tuple[str, ...], plain_logits: PlainLogits
) -> None:
    model = factorised("llama", added)
    save_checkpoint(model, None, tmp_path / "small")
    export_dense(tmp_path / "small", tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["attention_bias"] is any(name in ("q_proj", "k_proj") for name in added)
    assert config["mlp_bias"] is any(name in ("up_proj", "down_proj") for name in added)
    torch.testing.assert_close(plain_logits(tmp_path / "dense"), own_logits(model), rtol=1e-4, atol=1e-4)


def test_a_bias_without_a_place_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for architecture, added in (("mistral", "q_proj"), ("llama", "lm_head"), ("qwen2", "o_proj")):
        save_checkpoint(factorised(architecture, (added,), tied=False), None, tmp_path / architecture)
        with pytest.raises(UserError, match=rf"no bias at .*{added}.*no configuration flag"):
            export_dense(tmp_path / architecture, tmp_path / "dense")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "mistral", "qwen2"]


def test_products_are_rounded_once(tmp_path: Path) -> None:
    model = factorised("llama", dtype=torch.bfloat16)
    save_checkpoint(model, None, tmp_path / "small")
    name = "model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(name)
    exact = layer.lr_b.double() @ layer.lr_a.double()
    for dtype, saved in (("auto", torch.bfloat16), ("float32", torch.float32)):
        export_dense(tmp_path / "small", tmp_path / dtype, dtype)
        tensors = load_file(tmp_path / dtype / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {saved}
        torch.testing.assert_close(
            tensors[f"{name}.weight"], exact.to(saved), rtol=1e-6 if saved.itemsize == 4 else 0.008, atol=1e-5
        )
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == str(saved).removeprefix("torch.")


def test_tokenizer_and_generation_config_come_along(tmp_path: Path) -> None:
    model = factorised("llama")
    model.generation_config.max_new_tokens = 7
    tokenizer = load_tokenizer(PRESETS["tiny"].source)
    save_checkpoint(model, tokenizer, tmp_path / "small")
    (tmp_path / "small" / "compression.json").write_text("{}")
    export_dense(tmp_path / "small", tmp_path / "dense")
    small, dense = (
        {p.name: p.read_bytes() for p in (tmp_path / f).iterdir() if p.suffix != ".safetensors"}
        for f in ("small", "dense")
    )
    assert dense.keys() == small.keys() - {"compression.json"}
    assert all(dense[name] == small[name] for name in dense.keys() - {"config.json", "tokenizer_config.json"})
    again = AutoTokenizer.from_pretrained(tmp_path / "dense")
    assert again("Tom has 3.").input_ids == tokenizer("Tom has 3.").input_ids
    assert is_factorised(tmp_path / "small")
    assert not is_factorised(tmp_path / "dense")
    with pytest.raises(UserError, match="not factorised"):
        export_dense(tmp_path / "dense", tmp_path / "again")
    with pytest.raises(UserError, match="exists already"):
        export_dense(tmp_path / "small", tmp_path / "dense")
    with pytest.raises(UserError, match="unknown dtype"):
        export_dense(tmp_path / "small", tmp_path / "again", "float23")
    with pytest.raises(UserError, match=r"no model"):
        export_dense(tmp_path, tmp_path / "again")
