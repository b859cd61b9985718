"""What an evaluation needs at most, and that no more memory is asked for."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors import safe_open
from sweeps import small_sweep
from transformers import AutoModelForCausalLM, LlamaConfig

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.engines import vllm as vllm_engine
from lowrank_bench.evals.engines.base import Completion, Engine
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.hosting import child, host
from lowrank_bench.evals.tasks.prompts import encode_prompt, most_tokens
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models import footprint, identity
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.runners.dry_run import print_plan
from lowrank_bench.runners.estimates import machine

TINY = PRESETS["tiny"].source
GIB = 2**30


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shapes of Llama-3.1-8B: whole headers, and weights that are one hole in the file."""
    folder = tmp_path_factory.mktemp("shapes") / "Llama-3.1-8B"
    folder.mkdir()
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    for file in Path(TINY).glob("tokenizer*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert len(list(tensors.keys())) == 291
    return folder


def pretend(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    """Let so many GiB be free."""
    for module in (footprint, vllm_engine, machine):
        monkeypatch.setattr(module, "free_memory", lambda device: int(free * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * GIB), 24 * GIB))


@pytest.mark.parametrize("longest", [700, 2048, 8192])
def test_a_large_model_runs_where_the_benchmarks_longest_sequence_fits(
    llama: Path, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    pretend(monkeypatch, 24)
    monkeypatch.setattr(TransformersEngine, "__init__", lambda *_: None)
    monkeypatch.setattr(child, "_prepare", lambda threads: None)
    asked = ("transformers", "lowrank_bench.evals.engines.transformers", str(llama), "bfloat16", "cuda", None, 1)
    child._open(child.Opening(*asked, longest))
    with pytest.raises(
        UserError, match=r"weights 15\.0, keys and values of one sequence of 131072 tokens 16\.0.*24\.0"
    ):
        child._open(child.Opening(*asked))
    pretend(monkeypatch, 15)
    with pytest.raises(UserError, match=rf"one sequence of {longest} tokens"):
        child._open(child.Opening(*asked, longest))


@pytest.mark.parametrize(("free", "longest"), [(24, 2048), (22, 8192), (20.5, 700)])
def test_vllm_reserves_for_the_longest_sequence_and_wants_no_more_than_is_free(
    llama: Path, monkeypatch: pytest.MonkeyPatch, free: float, longest: int
) -> None:
    pretend(monkeypatch, free)
    needs = footprint.footprint(llama, dtype="bfloat16", longest=longest)
    reserved = vllm_engine.reservation(needs, "cuda")
    assert reserved["max_model_len"] == longest + 1
    assert reserved["kv_cache_memory_bytes"] >= needs.token * (longest + 1)
    reserved_bytes = reserved["gpu_memory_utilization"] * 24 * GIB
    assert needs.weights + reserved["kv_cache_memory_bytes"] + vllm_engine._OWN_BYTES <= reserved_bytes < free * GIB
    assert "gpu_memory_utilization" not in vllm_engine.reservation(needs, "cpu")
    with pytest.raises(UserError, match=r"one sequence of 131072 tokens"):
        vllm_engine.reservation(footprint.footprint(llama, dtype="bfloat16"), "cuda")


@pytest.mark.parametrize(
    ("rope", "depends"),
    [
        ({"rope_type": "default"}, False),
        ({"rope_type": "llama3", "factor": 8.0}, False),
        ({"type": "longrope"}, True),
        ({"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}, True),
        (None, False),
    ],
)
def test_where_positions_depend_on_the_length_vllm_keeps_the_whole_context(rope: dict | None, depends: bool) -> None:
    config = LlamaConfig()
    config.rope_parameters = rope
    assert vllm_engine._positions_depend_on_length(config) == depends


def test_the_dry_run_shows_and_judges_what_evaluations_need(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_sweep(
        llama.parent, model=str(llama), methods=["svd"], ratios=[2], training_free=True, dtype="bfloat16",
        finetune={}, recover={}, max_new_tokens=200, limit=None,
    )  # fmt: skip
    monkeypatch.setattr(identity, "sha256_file", lambda path: path.name)  # 16 GB of nothing
    texts = []
    for free in (24, 12):
        pretend(monkeypatch, free)
        console = Console(file=io.StringIO(), width=200)
        print_plan(config, console)
        texts.append(console.file.getvalue())
    row = next(line for line in texts[0].splitlines() if line.startswith("evaluate toy-math"))
    assert 200 < int(row.split("up to ")[1].split()[0]) < 1000
    assert "15.6" in row
    assert "fits cpu by formula: at most 15.6 of 24.0 GiB of the host (evaluate toy-math-250-0shot)" in texts[0]
    assert "does not fit: " in texts[1]
    assert " GiB of host memory, and cpu has 12.0; use " in texts[1]


class Recorder(Engine):
    """Answers anything and remembers the most tokens of a sequence."""

    def __init__(self, folder: str, context: int) -> None:
        self.tokenizer, self.context_length, self.longest = load_tokenizer(folder), context, 0

    def generate(self, prompts, sampling, batch_size, progress=None):
        self.longest = max(self.longest, *(len(ids) + sampling.max_new_tokens for ids in prompts))
        return [Completion((5,), "x", "stop") for _ in prompts]

    def logprobs(self, sequences, batch_size, progress=None):
        self.longest = max(self.longest, *map(len, sequences))
        return [[-1.0] * (len(ids) - 1) for ids in sequences]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("context", [300, 8192])
@pytest.mark.parametrize(
    ("name", "stage", "more"),
    [
        ("toy-math", "finetuned", {}),
        ("toy-math", "finetuned", {"max_new_tokens": 8}),
        ("gsm8k", "pretrained", {}),
        ("gsm8k", "finetuned", {}),
        ("tinystories", "finetuned", {"limit": 5}),
        ("tinystories", "finetuned", {"limit": 5, "context": 128}),
        ("stereoset", "pretrained", {}),
        ("winobias", "pretrained", {}),
    ],
)
def test_no_evaluation_asks_for_a_longer_sequence_than_it_says(
    data_dir: Path, name: str, stage: str, more: dict, context: int
) -> None:
    benchmark, folder = benchmarks.get(name)(), str(data_dir / "models" / "stories260K")
    settings = EvalSettings(**({"data_dir": data_dir, "stage": stage, "limit": 40} | more))
    engine = Recorder(folder, context)
    declared = benchmark.longest_sequence(engine.tokenizer, settings, context)
    if (name, stage, context) == ("gsm8k", "pretrained", 300):
        with pytest.raises(UserError, match="no prompt of 'gsm8k' fits this model"):
            benchmark.evaluate(engine, settings)
        return
    benchmark.evaluate(engine, settings)
    assert engine.longest <= declared <= context
    if context == 8192 and name != "tinystories":  # whose windows may all be shorter than the longest that is allowed
        assert declared == engine.longest


TOKENIZER = load_tokenizer(TINY)


@given(st.lists(st.text(max_size=40), max_size=12), st.sampled_from([5, 20, math.inf]))
def test_the_longest_text_is_found_without_tokenising_all(texts: list[str], limit: float) -> None:
    def count(text: str) -> int:
        return len(encode_prompt(TOKENIZER, text))

    fitting = [tokens for tokens in map(count, texts) if tokens <= limit]
    assert most_tokens(texts, count, limit) == max(fitting, default=0)


def test_short_texts_are_not_tokenised() -> None:
    seen: list[str] = []
    texts = ["ab" * 30, "c", "d" * 20]
    assert most_tokens(texts, lambda text: seen.append(text) or len(text)) == 60
    assert seen == [texts[0]]


def test_a_hosted_engine_tells_its_process_the_longest_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        id = 0

        def ask(self, progress, verb, opening):
            opened.append(opening)
            return 1024

    opened: list[child.Opening] = []
    monkeypatch.setattr(host, "_take", lambda *_: Process())
    host.HostedEngine("transformers", TINY, longest=lambda tokenizer, context: context // 4)
    host.HostedEngine("transformers", TINY)
    host.HostedEngine("vllm", TINY, device="cuda:1")
    assert [opening.longest for opening in opened] == [256, None, None]
    assert [opening.device for opening in opened] == ["cpu", "cpu", "cuda"]


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_engines_process_sees_its_gpu_alone(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    class Started(Exception):
        pass

    def start(command: list[str], env: dict[str, str], **_: object) -> None:
        assert env["CUDA_VISIBLE_DEVICES"] == "5"
        raise Started

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(host.subprocess, "Popen", start)
    with pytest.raises(Started):
        host.HostedEngine(engine, TINY, device="cuda:1")


def test_a_sequence_beyond_what_vllm_has_reserved_is_no_silent_cut() -> None:
    engine = vllm_engine.VllmEngine.__new__(vllm_engine.VllmEngine)
    engine.context_length, engine._longest = 1024, 100
    engine._check([[1] * 90], 10)
    with pytest.raises(ValueError, match="101 tokens were asked for, but memory was reserved for 100"):
        engine._check([[1] * 90], 11)
