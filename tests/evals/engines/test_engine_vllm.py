"""vLLM in a process of its own, by the suite of all engines, and what is its own."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from chat_families import FAMILIES, save_family_model
from chat_models import save_chat_model
from engine_contract import EngineContract

from lowrank_bench.evals.engines import vllm as vllm_engine
from lowrank_bench.evals.engines.base import Sampling
from lowrank_bench.evals.engines.vllm import VllmEngine
from lowrank_bench.evals.hosting.host import HostedEngine
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models import vllm_plugin
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.configs import load_config
from lowrank_bench.models.footprint import Footprint
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.runners import evaluating
from lowrank_bench.runners.evaluating import default_settings, evaluate

TINY = PRESETS["tiny"].source


@contextmanager
def vllm(checkpoint, dtype="float32"):
    before = "vllm" in sys.modules  # another test's doing, in the same process
    with HostedEngine("vllm", checkpoint, dtype, threads=1) as engine:
        yield engine
    assert ("vllm" in sys.modules) == before


@pytest.fixture(scope="module")
def factorised(tmp_path_factory):
    """The built-in model, half as large."""
    folder = tmp_path_factory.mktemp("factorised") / "model"
    model, method = load_model(TINY), create_method("svd", {})
    method.compress(model, method.fit(model, None), Budget(2.0, method.guard), None)
    save_checkpoint(model, load_tokenizer(TINY), folder)
    return folder


class Hosted(EngineContract):
    """The suite, and what needs no other engine than the one that is open for it."""

    open = staticmethod(vllm)

    def test_what_is_drawn_for_a_prompt_does_not_depend_on_its_neighbours(self, engine):
        sampling = Sampling(20, temperature=1.0, seed=3)
        alone = [engine.generate([prompt], sampling, 1)[0] for prompt in ([0], [0, 30])]
        together = engine.generate([[0, 40, 50], [0], [0, 30]], sampling, 3)
        assert together[1:] == alone


class TestHostedVllm(Hosted):
    pass


class TestFactorised(Hosted):
    @pytest.fixture(scope="class")
    def checkpoint(self, factorised):
        return factorised


def test_half_precision_and_the_checkpoints_own_dtype_are_close_to_float32():
    own = json.loads((Path(TINY) / "config.json").read_text())["dtype"]
    ids, scored = [[0, *range(30, 90)]], {}
    for dtype in ("float32", own, "auto"):
        with vllm(TINY, dtype) as engine:
            (scored[dtype],) = engine.logprobs(ids, 1)
    assert scored["auto"] == scored[own] != scored["float32"]
    assert torch.tensor(scored[own]).sub(torch.tensor(scored["float32"])).abs().mean() < 0.2


ENGINES = ("vllm", "transformers")
FREE = {"name": "free", "kind": "exact", "max_new_tokens": 12, "data": "rows.jsonl"}
PARTS = [
    FREE,
    {"name": "lines", "kind": "match", "max_new_tokens": 12, "stop": [" y", "\n"], "data": "rows.jsonl"},
    {"name": "choice", "kind": "choice", "choices": ["yes", "no"], "data": "rows.jsonl"},
    {"name": "texts", "kind": "perplexity", "window": 8, "data": "rows.jsonl"},
]


def write_task(folder, name, parts):
    """Write a task of eight prompts with its benchmarks; returns its file."""
    folder.mkdir()
    rows = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes", "text": "3 plus 4"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"data": "rows.jsonl", "form": "prompt-completion"}
    (folder / "task.yaml").write_text(yaml.safe_dump({"name": name, "train": train, "benchmarks": parts}))
    return str(folder / "task.yaml")


@pytest.fixture(scope="module")
def evaluated(data_dir, tmp_path_factory):
    """What each engine makes of each model, by engine and model: all of one engine's in one process."""
    root = tmp_path_factory.mktemp("evaluated")
    save_chat_model(root / "chat", "<|im_start|>user\nIs 4 even?<|im_end|>\n<|im_start|>assistant\n")
    file, family_file = write_task(root / "file", "vllmed", PARTS), write_task(root / "families", "families", [FREE])
    sampled = default_settings(data_dir=data_dir, limit=3, samples=5, temperature=0.8, max_new_tokens=24)
    asked = {"sampled": ("tiny", ["toy-math", "tinystories"], sampled)}
    asked |= {name: (name, [file], default_settings()) for name in ("tiny", str(root / "chat"))}
    for name, family in FAMILIES.items():
        save_family_model(family, root / name, family.asked.format("Is 4 even?"))
        asked[name] = (str(root / name), [family_file], default_settings())
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        # An evaluation takes the process that the one before it left, if it has as many threads.
        patch.setattr(evaluating, "divide_cores", lambda *_: (1, 1))
        for engine in ENGINES:
            for name, (model, names, settings) in asked.items():
                done = evaluate(model, names, settings, engine=engine, dtype="float32")
                assert done.failures == {}
                results[engine, Path(name).name] = done.outcomes
    return results


def test_perplexity_and_pass_at_k_agree_with_transformers(evaluated):
    values = {}
    for engine in ENGINES:
        outcomes = evaluated[engine, "sampled"]
        values[engine] = {metric.name: metric.value for metric in outcomes["tinystories"].metrics}
        names = {metric.name for metric in outcomes["toy-math"].metrics}
        assert "accuracy-pass@5" in names
        samples = outcomes["toy-math"].samples
        assert len(samples) == 15
        assert samples[0]["completion"] != samples[1]["completion"]
    assert values["vllm"] == pytest.approx(values["transformers"], rel=1e-4)


@pytest.mark.parametrize(("model", "style"), [("tiny", "alpaca"), ("chat", "chat")])
def test_a_task_file_is_evaluated_as_with_transformers_and_turns_end_alike(evaluated, model, style):
    """Generated answers with stop strings, choices and perplexity; behind a prompt and behind a conversation."""
    prompted, outcomes = ("vllmed-free", "vllmed-lines", "vllmed-choice"), evaluated["vllm", model]
    assert set(outcomes) == {*prompted, "vllmed-texts"}
    for name, expected in evaluated["transformers", model].items():
        ours, theirs = outcomes[name].samples, expected.samples
        assert [m.value for m in outcomes[name].metrics] == pytest.approx([m.value for m in expected.metrics], rel=1e-4)
        for fields in ("completion", "tokens", "finish_reason", "verdicts"):
            assert [s.get(fields) for s in ours] == [s.get(fields) for s in theirs]
        if name == "vllmed-choice":
            for by_vllm, by_transformers in zip(ours, theirs, strict=True):
                likelihoods = by_transformers["loglikelihoods"]
                assert by_vllm["loglikelihoods"] == pytest.approx(likelihoods, rel=1e-3, abs=1e-3)
    for name in prompted:
        assert {sample["variant"] for sample in outcomes[name].samples} == {f"{name}-0shot-{style}"}


def test_a_turns_end_a_stop_string_and_the_length_end_answers(evaluated):
    free, lines = (evaluated["vllm", "chat"][f"vllmed-{name}"].samples for name in ("free", "lines"))
    assert (free[4]["finish_reason"], free[4]["tokens"] <= 3) == ("stop", True), "the end of its turn ended it"
    assert "length" in {sample["finish_reason"] for sample in free}
    assert any(" y" in sample["completion"] for sample in free)
    assert not any(" y" in sample["completion"] for sample in lines), "a stop string ended these"


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_of_every_family_end_alike_and_bos_is_there_once(evaluated, name):
    samples, expected = (evaluated[engine, name]["families-free"].samples for engine in ENGINES)
    assert samples == expected
    assert {sample["variant"] for sample in samples} == {"families-free-0shot-chat"}
    assert (samples[4]["finish_reason"], samples[4]["tokens"] <= 3) == ("stop", True), "the end of its turn ended it"
    assert not any(token in samples[4]["completion"] for token in (FAMILIES[name].end, *FAMILIES[name].plain))
    assert "length" in {sample["finish_reason"] for sample in samples}


def test_the_cache_holds_a_full_sequence_or_is_refused(monkeypatch):
    needs = Footprint(weights=1 << 30, token=1 << 20, context=1024, dtype="bfloat16")
    sequence = needs.token * (needs.context + 129)
    for device, least in (("cpu", needs.weights + sequence), ("cuda", 8 << 30)):
        monkeypatch.setattr(vllm_engine, "free_memory", lambda device, free=least: free)
        assert vllm_engine.cache_bytes(needs, device) >= sequence
        monkeypatch.setattr(vllm_engine, "free_memory", lambda device: needs.weights + sequence // 2)
        with pytest.raises(UserError, match=r"one sequence of 1024 tokens.*--engine transformers"):
            vllm_engine.cache_bytes(needs, device)
    monkeypatch.setattr(vllm_engine, "free_memory", lambda device: 1 << 42)
    assert vllm_engine.cache_bytes(needs, "cpu") == 4 << 30
    assert vllm_engine.cache_bytes(needs, "cuda") == 1024 * sequence


def test_the_scheduler_is_never_short_of_requests(monkeypatch):
    """The call order alone: vLLM itself is asked by the tests above."""

    class Scheduler:
        def __init__(self):
            self.queue, self.most, self.aborted = [], 0, []

        def add_request(self, name, prompt, params):
            self.queue.append(name)
            self.most = max(self.most, len(self.queue))

        def step(self):
            ended, self.queue = self.queue[:300], self.queue[300:]
            return [SimpleNamespace(request_id=name, finished=True) for name in ended]

        def abort_request(self, names):
            self.aborted += names

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(TokensPrompt=dict))  # importing it takes 10 s
    scheduler = Scheduler()
    engine = VllmEngine.__new__(VllmEngine)
    engine._llm = SimpleNamespace(llm_engine=scheduler)
    indices = [index for index, _, _ in engine._run([[1]] * 2500, lambda index: None)]
    assert sorted(indices) == list(range(2500))
    assert scheduler.most == 1024
    assert scheduler.aborted == []


@pytest.mark.parametrize(("device", "side_by_side"), [("cpu", 64), ("cuda", 1024)])
def test_vllm_gets_as_many_sequences_as_it_takes(device, side_by_side, monkeypatch):
    """Not vLLM's own default of 256 on a GPU; fewer where two copies of their logits would take more than 1 GiB."""
    given = []
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **settings: given.append(settings)))
    monkeypatch.setattr(vllm_plugin, "register", lambda: None)
    monkeypatch.setattr(vllm_engine, "reservation", lambda needs, device: {})
    for name in vllm_engine._ENVIRONMENT:
        monkeypatch.setenv(name, "")  # what the engine sets is taken back
    VllmEngine(TINY, "float32", device)
    assert given[-1]["max_num_seqs"] == side_by_side
    monkeypatch.setattr(vllm_engine, "_LOGIT_BYTES", 10 * 8 * load_config(TINY).vocab_size)
    VllmEngine(TINY, "float32", device)
    assert given[-1]["max_num_seqs"] == 10
    assert given[-1]["max_num_batched_tokens"] == 512


def test_what_vllm_can_run_is_known_without_importing_it():
    """In a process of its own: other tests import vLLM into this one."""
    code = (
        "import sys\n"
        "from transformers import AutoConfig\n"
        "from lowrank_bench.evals.hosting.choice import vllm_architectures, vllm_lacks, vllm_version\n"
        "assert vllm_version()\n"
        "assert {'LlamaForCausalLM', 'Qwen3ForCausalLM', 'GPT2LMHeadModel'} <= vllm_architectures()\n"
        f"assert vllm_lacks(AutoConfig.from_pretrained({TINY!r}), 'cpu') == ''\n"
        "assert 'vllm' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
