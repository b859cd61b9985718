"""Other people's model folders: each broken one is one sentence that names what is wrong, for every command."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from sweeps import small_sweep
from transformers import AutoModelForCausalLM

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.configs import load_config
from lowrank_bench.models.export import export_dense
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.loading import load_model, load_skeleton, load_tokenizer, weights_size
from lowrank_bench.models.matrices import get_linear, replace_module
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.models.streamed import open_streamed
from lowrank_bench.results.inspection.gather import inspect_bases
from lowrank_bench.results.speed.subject import find_subject
from lowrank_bench.runners.compressing import CompressRequest, compress, estimate_compression
from lowrank_bench.runners.config import MethodSpec
from lowrank_bench.runners.evaluating import default_settings, evaluate
from lowrank_bench.runners.plan import make_plan

QUERY, KEY = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
Edit = Callable[[Path], Any]


def factorise(model: Any) -> Any:
    for name in (QUERY, KEY):
        weight = get_linear(model, name).weight
        rows, width = weight.shape
        layer = LowRankLinear.from_factors(torch.randn(6, width).to(weight), torch.randn(rows, 6).to(weight))
        replace_module(model, name, layer)
    return model


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("originals"), PRESETS["tiny"].source
    save_checkpoint(load_model(source, dtype="auto"), load_tokenizer(source), folder / "dense")
    save_checkpoint(factorise(load_model(source, dtype="auto")), load_tokenizer(source), folder / "lowrank")
    return folder


def set_field(path: str, value: Any, file: str = "config.json") -> Edit:
    def edit(folder: Path) -> None:
        whole = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        *outer, last = path.split("/")
        inner = whole
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
        (folder / file).write_text(json.dumps(whole))

    return edit


def generation(**fields: Any) -> Edit:
    return lambda folder: [set_field(key, value, "generation_config.json")(folder) for key, value in fields.items()]


def write(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text(text)


def link(name: str, target: str) -> Edit:
    return lambda folder: ((folder / name).unlink(missing_ok=True), (folder / name).symlink_to(target))


def fifo(name: str) -> Edit:
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


def tensors(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        for factor, change in changes.items():
            weights[f"{QUERY}.{factor}"] = change(weights[f"{QUERY}.{factor}"]).contiguous()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


def extra(name: str) -> Edit:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {name: torch.ones(2, 2)}, folder / "model.safetensors", {"format": "pt"})

    return edit


def index(weight_map: Any, keep: bool = False) -> Edit:
    def edit(folder: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder / "a.safetensors")
        if not keep:
            (folder / "model.safetensors").rename(folder / "b.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return edit


def large_token(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    vocabulary[max(vocabulary, key=lambda token: vocabulary[token])] = 10**6
    (folder / "tokenizer.json").write_text(json.dumps(whole))


NEST = "[" * 200 + "]" * 200
Q = "quantization_config"
FOREIGN = ("bitsandbytes", "gptq", "awq", "torchao", "fp8", "compressed-tensors", "abacus")

ANY: dict[str, tuple[Edit, str]] = {
    "config empty": (write("config.json", ""), r"config\.json cannot be read"),
    "config without a field": (write("config.json", "{}"), r"config\.json has the model_type null"),
    "config a number": (write("config.json", "3"), r"config\.json cannot be read .*holds a int"),
    "config deep": (write("config.json", f'{{"model_type": "llama", "a": {NEST}}}'), r"config\.json.*nested deeper"),
    "config very deep": (write("config.json", "[" * 10**5), r"config\.json.*nested too deeply"),
    "config huge number": (write("config.json", '{"a": 1' + "0" * 5000 + "}"), r"config\.json cannot be read"),
    "config no UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), r"config\.json cannot be read"),
    "config a pipe": (fifo("config.json"), r"config\.json"),
    "config a device": (link("config.json", "/dev/zero"), r"config\.json"),
    "config a loop": (link("config.json", "config.json"), r"config\.json"),
    "weights a pipe": (fifo("model.safetensors"), r"model\.safetensors is no ordinary file"),
    "weights a device": (link("model.safetensors", "/dev/zero"), r"model\.safetensors is no ordinary file"),
    "weights a loop": (link("model.safetensors", "model.safetensors"), r"model\.safetensors leads nowhere"),
    "tokenizer a pipe": (fifo("tokenizer.json"), r"tokenizer\.json is no ordinary file"),
    "generation a pipe": (fifo("generation_config.json"), r"generation_config\.json is no ordinary file"),
    "kernel": (set_field("_attn_implementation", "someone/kernel"), r"_attn_implementation .*someone/kernel"),
    "kernel by the public name": (set_field("attn_implementation", "a/b@main:f"), r"attn_implementation of .*a/b@main"),
    "kernel in a mapping": (set_field("attn_implementation", {"": "a/b"}), r"attn_implementation of .*a/b"),
    "kernel in a part": (set_field("text_config/_attn_implementation", "a/b"), r"text_config\._attn_implementation"),
    "flash without its package": (set_field("_attn_implementation", "flash_attention_3"), "not installed"),
    "attention a number": (set_field("_attn_implementation", 3), r"_attn_implementation of .*config\.json is 3"),
    "experts": (set_field("_experts_implementation", "sonicmoe"), r"_experts_implementation of .*sonicmoe"),
    "kernels asked for": (set_field("use_kernels", True), r"use_kernels of .*config\.json"),
    "generation by code": (
        set_field("custom_generate", "a/b", "generation_config.json"),
        r"custom_generate of .*generation_config\.json",
    ),
    "end token a text": (generation(eos_token_id="x"), r"eos_token_id of .*generation_config\.json is 'x'"),
    "end tokens null": (generation(eos_token_id=[None]), r"eos_token_id of .*\[None\], not a token id or a list"),
    "start tokens": (generation(bos_token_id=[0]), r"bos_token_id of .*\[0\], not a token id \("),
    "suppressed token": (generation(suppress_tokens=3), r"suppress_tokens of .* is 3, not a list of token ids"),
    "padding true": (generation(pad_token_id=True), r"pad_token_id of .* is True, not a token id"),
    "unknown cache": (
        generation(cache_implementation="quux"),
        r"generation settings of .*quux.*generation_config\.json",
    ),
    "no new tokens": (generation(max_new_tokens=-1), r"generation settings of .*greater than 0"),
    "new tokens a text": (generation(max_new_tokens="many"), r"generation settings of .*str"),
    "watermark a number": (generation(watermarking_config=3), r"generation settings of .*validate"),
    "cache in the configuration": (
        lambda f: ((f / "generation_config.json").unlink(), set_field("cache_implementation", "quux")(f)),
        r"generation settings of .*quux.* in config\.json",
    ),
    "another configuration": (set_field("configuration_files", ["config.4.0.0.json"]), "configuration_files of"),
    "other weights": (set_field("transformers_weights", "../x.safetensors"), "transformers_weights of"),
    "own code": (
        lambda f: (
            set_field("model_type", "abacus")(f),
            set_field("auto_map", {"AutoConfig": "evil.Config"})(f),
        ),
        "auto_map of config.json .*never run",
    ),
    "quantised in a part": (set_field(f"text_config/{Q}", {"quant_method": "fp8"}), rf"text_config\.{Q} of .*fp8"),
    "quantised by name only": (set_field(Q, "fp8"), rf"{Q} of .*not an object with a quant_method"),
    "quantised, a list": (set_field(Q, [1]), rf"{Q} of .*not an object with a quant_method"),
    "quantised, method a number": (set_field(Q, {"quant_method": 4}), rf"{Q} of .*not an object with a quant_method"),
    "adapter": (write("adapter_config.json", "{}"), "adapter_config.json, a peft adapter.*merge_and_unload"),
    "adapter no JSON": (write("adapter_config.json", ""), "adapter_config.json, a peft adapter.*merge_and_unload"),
    "adapter alone": (
        lambda f: (write("adapter_config.json", "{}")(f), (f / "config.json").unlink()),
        "adapter_config.json, a peft adapter.*merge_and_unload",
    ),
    "adapter leads nowhere": (link("adapter_config.json", "away"), r"adapter_config\.json( leads nowhere|, a peft)"),
    "a layer more": (set_field("num_hidden_layers", 1), r"no module of the LlamaForCausalLM .*model\.layers\.1\."),
    "a tensor more": (extra("model.foo"), r"no module of .* uses 1 stored tensor, model\.foo;"),
    "modelopt": (write("hf_quant_config.json", "{}"), r"hf_quant_config\.json .*modelopt"),
    "width 1e7": (set_field("hidden_size", 10**7), r"hidden_size of .*config\.json is 10000000"),
    "layers 1e7": (set_field("num_hidden_layers", 10**7), r"num_hidden_layers of .*config\.json is 10000000"),
    "width a text": (set_field("hidden_size", "64"), r"hidden_size of .*config\.json is '64'"),
    "no heads": (set_field("num_attention_heads", 0), "describes no causal language model"),
    "index outside": (index({"a": "../a.safetensors"}), r"weight_map of .*names '\.\./a\.safetensors'"),
    "index absolute": (index({"a": "/etc/passwd"}), r"weight_map of .*names '/etc/passwd'"),
    "index of numbers": (index({"a": 3}), r"weight_map of .*names 3"),
    "index a list": (index([]), r"index\.json cannot be read"),
    "index empty": (index({}), r"weight_map of .*names no file"),
    "shard missing": (index({"a": "c.safetensors"}), r"c\.safetensors is missing"),
    "tensors twice": (index({"a": "a.safetensors", "b": "b.safetensors"}), r"is in both a\.safetensors and"),
    "index and single": (index({"a": "a.safetensors"}, keep=True), r"has both model\.safetensors and"),
    **{
        f"{name} weights": (set_field(Q, {"quant_method": name}), rf"{Q} of .*quantised by '{name}'")
        for name in FOREIGN
    },
}

FACTORISED: dict[str, tuple[Edit, str]] = {
    "short lr_b": (tensors(lr_b=lambda t: t[:50]), rf"{QUERY}\.lr_b has another shape, \(50, 6\)"),
    "narrow lr_a": (tensors(lr_a=lambda t: t[:, :9]), rf"{QUERY}\.lr_a has another shape, \(6, 9\)"),
    "3-d lr_a": (tensors(lr_a=lambda t: t[None]), rf"{QUERY}\.lr_a has 3 dimensions"),
    "1-d lr_b": (tensors(lr_b=lambda t: t[:, 0]), rf"{QUERY}\.lr_b has 1 dimensions"),
    "int8 lr_b": (tensors(lr_b=lambda t: t.to(torch.int8)), rf"{QUERY}\.lr_b is stored as I8"),
    "bool lr_a": (tensors(lr_a=lambda t: t > 0), rf"{QUERY}\.lr_a is stored as BOOL"),
    "full guard": (tensors(weight=lambda t: torch.ones(2, 2)), rf"{QUERY}\.weight is the guard"),
    "rank 1e7": (set_field(f"{Q}/ranks/{QUERY}", 10**7), rf"{QUERY}\.lr_a has shape .*rank 10000000"),
    "rank a text": (set_field(f"{Q}/ranks/{QUERY}", "6"), "names no rank for each"),
    "rank true": (set_field(f"{Q}/ranks/{QUERY}", True), "names no rank for each"),
    "no ranks": (set_field(f"{Q}/ranks", {}), "names no rank for each"),
    "shared a list": (set_field(f"{Q}/shared", ["a"]), rf"{Q}\.shared of config\.json"),
    "shared of lists": (set_field(f"{Q}/shared", {KEY: [QUERY]}), rf"{Q}\.shared of config\.json"),
    "bias a number": (set_field(f"{Q}/added_bias", 3), rf"{Q}\.added_bias of config\.json"),
    "bias of numbers": (set_field(f"{Q}/added_bias", [[3]]), rf"{Q}\.added_bias of config\.json"),
    "dense a number": (set_field(f"{Q}/dense", 3), rf"{Q}\.dense of config\.json"),
    "guard a number": (set_field(f"{Q}/guard", 3), rf"{Q}\.guard of config\.json"),
    "guard of another": (set_field(f"{Q}/guard", "lm_head.weight"), rf"{Q}\.guard of config\.json"),
    "version a list": (set_field(f"{Q}/version", [1]), r"layout version \[1\]"),
    "a tensor more": (extra("model.foo"), r"no module of .* uses 1 stored tensor, model\.foo;"),
    "factors of a dense layer": (
        extra("model.layers.0.mlp.up_proj.lr_a"),
        r"up_proj\.lr_a",
    ),
    "version 1.0": (set_field(f"{Q}/version", 1.0), r"layout version 1\.0"),
}

TOKENIZERS: dict[str, tuple[Edit, str]] = {
    "no JSON": (write("tokenizer.json", "not JSON"), r"tokenizer\.json cannot be read"),
    "a list": (write("tokenizer.json", "[]"), r"tokenizer\.json cannot be read .*holds a list"),
    "empty": (write("tokenizer.json", "{}"), "the tokenizer of"),
    "model a number": (set_field("model", 5, "tokenizer.json"), "the tokenizer of"),
    "deep": (write("tokenizer.json", f'{{"a": {NEST}}}'), r"tokenizer\.json.*nested deeper"),
    "configuration a list": (write("tokenizer_config.json", "[]"), r"tokenizer_config\.json cannot be read"),
    "class a number": (set_field("tokenizer_class", 3, "tokenizer_config.json"), "the tokenizer of"),
    "ids beyond": (large_token, r"tokenizer of .*id above the vocab_size of config\.json"),
}


def broken(originals: Path, kind: str, edit: Edit, target: Path) -> Path:
    shutil.copytree(originals / kind, target)
    edit(target)
    return target


def request(folder: Path, out: Path) -> CompressRequest:
    return CompressRequest(str(folder), MethodSpec(name="svd"), 1.5, out)


COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    "compress": lambda folder, out: compress(request(folder, out)),
    "compress --dry-run": lambda folder, out: estimate_compression(request(folder, out)),
    "run": lambda folder, out: make_plan(small_sweep(out, model=str(folder), methods=["svd"], ratios=[1.5])),
    "eval": lambda folder, out: evaluate(
        str(folder), ["toy-math"], default_settings(limit=1), engine="transformers", out=out
    ),
    "export": export_dense,
    "inspect": lambda folder, out: inspect_bases(str(folder), "q", 0),
    "speed": lambda folder, out: find_subject(str(folder)),
}


def refuse(command: str, folder: Path, out: Path, message: str) -> None:
    before = sorted(folder.parent.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        COMMANDS[command](folder, out)
    assert "\n" not in str(caught.value), command
    assert sorted(folder.parent.iterdir()) == before, f"{command} wrote something"


@pytest.mark.parametrize("case", ANY)
def test_every_command_refuses_a_broken_folder_in_a_sentence(originals: Path, tmp_path: Path, case: str) -> None:
    edit, message = ANY[case]
    folder = broken(originals, "dense", edit, tmp_path / "model")
    for command in COMMANDS:
        late = case in ("own code", "no heads") or message.startswith(("generation settings", "no module of"))
        unbuilt = command == "export" and late  # refused as dense before it is built
        refuse(command, folder, tmp_path / "out", "is not factorised" if unbuilt else message)
    with pytest.raises(UserError):
        open_streamed(folder)


@pytest.mark.parametrize("case", FACTORISED)
def test_every_command_refuses_broken_factors(originals: Path, tmp_path: Path, case: str) -> None:
    edit, message = FACTORISED[case]
    folder = broken(originals, "lowrank", edit, tmp_path / "model")
    for command in COMMANDS:
        refuse(command, folder, tmp_path / "out", message)


@pytest.mark.parametrize("case", TOKENIZERS)
def test_garbage_tokenizers(originals: Path, tmp_path: Path, case: str) -> None:
    edit, message = TOKENIZERS[case]
    folder = broken(originals, "dense", edit, tmp_path / "model")
    for command in ("compress", "eval", "inspect"):
        refuse(command, folder, tmp_path / "out", message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["lr_a", "lr_b"])
def test_factors_that_are_not_finite(originals: Path, tmp_path: Path, factor: str, value: float) -> None:
    folder = broken(originals, "lowrank", tensors(**{factor: lambda t: t.fill_(value)}), tmp_path / "model")
    for command in ("export", "inspect"):
        refuse(command, folder, tmp_path / "out", rf"{QUERY}\.{factor} .*NaN or infinity")


@pytest.mark.parametrize("command", ["compress", "compress --dry-run", "run"])
def test_a_factorised_model_is_not_compressed_again(originals: Path, tmp_path: Path, command: str) -> None:
    folder = broken(originals, "lowrank", lambda f: None, tmp_path / "model")
    refuse(command, folder, tmp_path / "out", "factorised already, and a ratio counts from the original")
    export_dense(folder, tmp_path / "dense")
    estimate_compression(request(tmp_path / "dense", tmp_path / "out"))


@pytest.mark.parametrize("beside", [True, False], ids=["beside its model", "alone"])
def test_what_is_said_of_an_adapter_works(tmp_path: Path, beside: bool) -> None:
    base, source = tmp_path / "base", PRESETS["tiny"].source
    save_checkpoint(load_model(source), load_tokenizer(source), base)  # float32, in which merging rounds little
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped, plain = peft.get_peft_model(load_model(base), config), load_model(base)
    folder = base if beside else tmp_path / "model"
    wrapped.save_pretrained(folder)
    with pytest.raises(UserError) as caught:
        estimate_compression(request(folder, tmp_path / "out"))
    if beside:
        (tmp_path / "base-adapter").mkdir()
        for file in folder.glob("adapter_*"):
            file.rename(tmp_path / "base-adapter" / file.name)
        assert f"move adapter_* into '{folder}-adapter'" in str(caught.value)
    advice = re.search(r"(Auto)?Peft\w+\..*\.save_pretrained\('[^']*'\)", str(caught.value))
    assert advice
    eval(advice[0], vars(peft) | {"AutoModelForCausalLM": AutoModelForCausalLM})
    merged, ids = load_model(f"{folder}-merged"), torch.randint(3, 400, (2, 7))
    with torch.no_grad():
        expected, logits = wrapped(input_ids=ids).logits, merged(input_ids=ids).logits
        assert torch.allclose(logits, expected, atol=1e-4)
        assert not torch.allclose(plain(input_ids=ids).logits, expected, atol=1e-2)


def test_adapter_weights_alone_are_read_by_nobody(originals: Path, tmp_path: Path) -> None:
    folder = broken(originals, "dense", lambda f: None, tmp_path / "model")
    before = weights_size(folder)
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    estimate_compression(request(folder, tmp_path / "out"))
    assert weights_size(folder) == before


def test_auto_model_loads_factors_without_a_head(originals: Path) -> None:
    from transformers import AutoModel

    whole = load_model(originals / "lowrank")
    ids = torch.randint(3, 400, (2, 7))
    inner = AutoModel.from_pretrained(originals / "lowrank", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(inner(ids).last_hidden_state, whole.model(ids).last_hidden_state)


@pytest.mark.parametrize("field", ["eager", "sdpa", None])
def test_built_in_choices_stay(originals: Path, tmp_path: Path, field: str | None) -> None:
    folder = broken(originals, "dense", set_field("_attn_implementation", field), tmp_path / "model")
    assert load_config(folder)._attn_implementation == field
    load_skeleton(folder)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from pathlib import Path
Path({mark!r}).write_text("ran")
class Config(LlamaConfig): model_type = "abacus"
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""
AUTO_MAP = {
    "AutoConfig": "evil.Config",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", None],
}


@pytest.mark.parametrize("model_type", ["llama", "abacus"])
def test_a_yes_on_standard_input_runs_no_code(
    originals: Path, tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"

    def edit(folder: Path) -> None:
        (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
        set_field("auto_map", AUTO_MAP)(folder)
        set_field("model_type", model_type)(folder)
        set_field("auto_map", {"AutoTokenizer": AUTO_MAP["AutoTokenizer"]}, "tokenizer_config.json")(folder)
        set_field("tokenizer_class", "Tokenizer", "tokenizer_config.json")(folder)

    folder = broken(originals, "dense", edit, tmp_path / "model")
    for load in (load_config, load_skeleton, load_model, load_tokenizer, open_streamed):
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
        try:
            load(folder)
            refused = False
        except UserError:
            refused = True
        assert refused or model_type == "llama", load.__name__
        assert sys.stdin.tell() == 0, f"{load.__name__} asked"
    assert not mark.exists()


def test_a_yes_on_standard_input_runs_no_code_of_the_command(originals: Path, tmp_path: Path) -> None:
    def edit(folder: Path) -> None:
        (folder / "evil.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
        set_field("auto_map", AUTO_MAP)(folder)
        set_field("model_type", "abacus")(folder)

    folder = broken(originals, "dense", edit, tmp_path / "model")
    words = ["compress", str(folder), "--method", "svd", "--ratio", "1.5", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "lowrank_bench.cli", *words], input="y\ny\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "never run" in " ".join(done.stderr.split())
    assert not (tmp_path / "mark").exists()
