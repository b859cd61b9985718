"""Models of kinds that are met today and cannot be used as they are: right, or one sentence before any work."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from sweeps import small_sweep

from lowrank_bench.cli import main
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.loading import load_model, load_skeleton, load_tokenizer
from lowrank_bench.models.matrices import model_size
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.runners.compressing import CompressRequest, compress, estimate_compression
from lowrank_bench.runners.config import MethodSpec
from lowrank_bench.runners.evaluating import default_settings, evaluate
from lowrank_bench.runners.plan import make_plan

TOKENIZER = load_tokenizer(PRESETS["tiny"].source)
SIZES = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def saved(folder, model, tokenizer=TOKENIZER):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama(folder, tied=False, **options):
    torch.manual_seed(0)
    return saved(folder, tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, tie_word_embeddings=tied)), **options)


def experts(folder):
    torch.manual_seed(0)
    return saved(folder, tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SIZES, **EXPERTS)))


def multi_modal(folder):
    torch.manual_seed(0)
    tokens = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92, "mm_tokens_per_image": 4}
    config = tf.Gemma3Config(text_config=SIZES, vision_config=VISION, **tokens)
    return saved(folder, tf.Gemma3ForConditionalGeneration(config))


def set_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def edit(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


def gguf(folder, config=False):
    """A folder of a GGUF file alone, or in the place of a model's weights."""
    if config:
        (llama(folder) / "model.safetensors").unlink()
    folder.mkdir(exist_ok=True)
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(60))
    return folder


def eight_bits(words, dtype=torch.float8_e4m3fn):
    return lambda tensors: {name: value.to(dtype) if words in name else value for name, value in tensors.items()}


def quantised(**fields):
    return lambda folder: set_config(llama(folder), quantization_config=fields)


WRONG = {
    "a GGUF file": (lambda folder: gguf(folder) / "model-Q4_K_M.gguf", "Q4_K_M.gguf is in llama.cpp's format GGUF"),
    "a folder with a GGUF file": (gguf, "Q4_K_M.gguf is in llama.cpp's format GGUF.*name the model that it was made"),
    "GGUF weights beside config.json": (lambda folder: gguf(folder, config=True), "Q4_K_M.gguf is in llama.cpp's"),
    "a safetensors file": (lambda folder: llama(folder) / "model.safetensors", "is a file; name its folder"),
    "fp8 by its configuration": (quantised(quant_method="fp8"), "quantised by 'fp8'|quantised by \"fp8\""),
    "compressed-tensors": (
        quantised(quant_method="compressed-tensors", format="float-quantized"),
        "quantised by .compressed-tensors.*before quantisation",
    ),
    "fp8 without a word": (
        lambda folder: edit(llama(folder), eight_bits("q_proj")), "q_proj.weight is stored as F8_E4M3",
    ),
    "experts in fp8": (lambda folder: edit(experts(folder), eight_bits("experts")), "experts.* is stored as F8_E4M3"),
    "experts in int8": (
        lambda folder: edit(experts(folder), eight_bits("experts", torch.int8)), "experts.* is stored as I8",
    ),
    "tied, and another head stored": (
        lambda folder: set_config(llama(folder), tie_word_embeddings=True),
        "ties .* to one tensor and the files hold two that differ.*tie_word_embeddings to false",
    ),
    "an embedding tied to nothing": (
        lambda folder: edit(llama(folder), lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"}),
        r"hold no output head \(lm_head.weight\).*set tie_word_embeddings to true",
    ),
    "a tensor missing": (
        lambda folder: edit(llama(folder), lambda tensors: {k: v for k, v in tensors.items() if "up_proj" not in k}),
        "the tensor model.layers.0.mlp.up_proj.weight is missing",
    ),
    "a model of pictures and text that is no causal one": (
        lambda folder: saved(folder, tf.CLIPTextModel(tf.CLIPTextConfig(hidden_size=16, intermediate_size=16,
                             num_attention_heads=2, num_hidden_layers=1, vocab_size=len(TOKENIZER)))),
        "describes no causal language model that transformers can build",
    ),
}  # fmt: skip


def commands(model, out, data_dir, **method):
    """Return the three commands, with and without a dry run, each of which plans or does all of its work."""
    spec = MethodSpec(name="svd", options=method)
    request = CompressRequest(str(model), spec, 1.2, out / "compressed")
    config = {
        "model": str(model),
        "methods": [spec],
        "ratios": [1.2],
        "task": "language",
        "benchmarks": ["tinystories"],
    }
    config |= {"context": [32], "data": data_dir, "training_free": True, "finetune": {}, "recover": {}}
    settings = default_settings(data_dir=data_dir, limit=2)
    return {
        "compress --dry-run": lambda: estimate_compression(request),
        "compress": lambda: compress(request),
        "run --dry-run": lambda: make_plan(small_sweep(out / "runs", **config), dry=True),
        "run": lambda: make_plan(small_sweep(out / "runs", **config)),
        "eval": lambda: evaluate(
            str(model), ["tinystories"], settings, engine="transformers", dtype="float32", contexts=[32]
        ),
    }


@pytest.mark.parametrize("case", WRONG)
def test_one_sentence_before_any_work(case, tmp_path, data_dir):
    make, message = WRONG[case]
    model = make(tmp_path / "model")
    for name, command in commands(model, tmp_path / "out", data_dir).items():
        with pytest.raises(UserError, match=message) as caught:
            command()
        assert "\n" not in str(caught.value), name
    assert not (tmp_path / "out").exists(), "nothing was written"


@pytest.mark.parametrize("case", ["a GGUF file", "tied, and another head stored", "experts in fp8"])
@pytest.mark.parametrize("command", ["compress", "compress --dry-run", "run", "run --dry-run", "eval"])
def test_exit_code_2_and_no_traceback(case, command, tmp_path, data_dir, monkeypatch, capsys):
    model, out = str(WRONG[case][0](tmp_path / "model")), str(tmp_path / "out")
    words = {
        "compress": ["compress", model, "--method", "svd", "--ratio", "2", "--out", out],
        "run": ["run", "--model", model, "--task", "toy-math", "--methods", "svd", "--out", out],
        "eval": ["eval", model, "--benchmarks", "toy-math", "--out", out],
    }[command.split()[0]]
    monkeypatch.setattr(sys, "argv", ["bench", *words, *command.split()[1:]])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert "Traceback" not in shown.err
    assert not Path(out).exists()


def twice(folder):
    """A tied model whose files hold its one tensor under both names, as some writers do."""
    return edit(
        llama(folder, tied=True),
        lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
    )


def head_alone(folder):
    """A tied model whose one tensor is stored under the head's name."""
    return edit(
        llama(folder, tied=True),
        lambda tensors: {k.replace("model.embed_tokens", "lm_head"): v for k, v in tensors.items()},
    )


def beside(folder):
    shutil.copy(gguf(folder.with_name("other")) / "model-Q4_K_M.gguf", llama(folder))
    return folder


RIGHT = {
    "tied, stored twice": (twice, {}), "tied, stored as the head": (head_alone, {"embeddings": True}),
    "untied, embeddings factorised": (llama, {"embeddings": True}), "3-D experts": (experts, {}),
    "a multi-modal wrapper": (multi_modal, {"embeddings": True}), "a GGUF file beside the weights": (beside, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_what_works_as_it_is(case, tmp_path, data_dir):
    make, options = RIGHT[case]
    model = make(tmp_path / "model")
    skeleton, loaded = load_skeleton(model), load_model(model)
    assert model_size(skeleton).parameters == model_size(loaded).parameters, "what is planned is what is loaded"
    results = {name: command() for name, command in commands(model, tmp_path / "out", data_dir, **options).items()}
    assert not results["eval"].failures
    done = results["compress"]
    assert done.report.parameters_before == model_size(loaded).parameters
    assert done.report.ratio >= 1.2
    (allocated,) = results["run"].allocations.values()
    assert set(allocated.ranks) == set(done.report.ranks)
    separate = "untied" in case or "experts" in case
    assert ("lm_head" in done.report.ranks) == (separate or "beside" in case)
    assert any("embed_tokens" in name for name in done.report.ranks) == bool(options)
    if "experts" in case:
        assert any(part.what == "experts" and part.parameters == 4 * 3 * 16 * 32 for part in done.dense)
    assert not evaluate(
        str(tmp_path / "out" / "compressed"), ["tinystories"], default_settings(data_dir=data_dir, limit=1),
        engine="transformers", contexts=[32],
    ).failures  # fmt: skip


def test_a_context_longer_than_the_models(tmp_path, data_dir):
    model = llama(tmp_path / "model")
    changes = {
        "model": str(model),
        "methods": ["svd"],
        "ratios": [1.2],
        "task": "language",
        "benchmarks": ["wikitext2"],
    }
    for dry in (False, True):
        with pytest.raises(UserError, match=r"--context 4096 is more than .* takes \(64\)"):
            make_plan(small_sweep(tmp_path / "o", **changes, context=[4096], data=data_dir), dry=dry)
    settings = default_settings(data_dir=data_dir, limit=1)
    with pytest.raises(UserError, match=r"--context 4096 is more than the model takes \(64\)"):
        evaluate(str(model), ["wikitext2"], settings, engine="transformers", contexts=[4096])


def test_a_tokenizer_without_bos(tmp_path, data_dir):
    tokenizer = load_tokenizer(PRESETS["tiny"].source)
    tokenizer.bos_token = None
    tokenizer.backend_tokenizer.post_processor = None
    model = llama(tmp_path / "model", tokenizer=tokenizer)
    changes = {
        "model": str(model),
        "methods": ["svd"],
        "ratios": [1.2],
        "task": "language",
        "benchmarks": ["wikitext2"],
    }
    settings = default_settings(data_dir=data_dir, limit=1)
    for dry in (False, True):
        with pytest.raises(UserError, match="no BOS token to begin a window with; use --bos auto, or never"):
            make_plan(small_sweep(tmp_path / "o", **changes, bos="always", data=data_dir), dry=dry)
    with pytest.raises(UserError, match="no BOS token to begin a window with; use --bos auto, or never"):
        evaluate(str(model), ["wikitext2"], settings, engine="transformers", bos=["always"])
    done = evaluate(str(model), ["wikitext2"], settings, engine="transformers", contexts=[32])
    assert [outcome.variant for outcome in done.outcomes.values()] == ["wikitext2-test-32"]
