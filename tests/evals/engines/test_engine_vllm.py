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
    def test_half_precision_and_the_checkpoints_own_dtype_are_close_to_float32(self, engine):
        own = json.loads((Path(TINY) / "config.json").read_text())["dtype"]
        ids = [[0, *range(30, 90)]]
        scored = {"float32": engine.logprobs(ids, 1)[0]}
        for dtype in (own, "auto"):
            with vllm(TINY, dtype) as other:
                (scored[dtype],) = other.logprobs(ids, 1)
        assert scored["auto"] == scored[own] != scored["float32"]
        assert torch.tensor(scored[own]).sub(torch.tensor(scored["float32"])).abs().mean() < 0.2


class TestFactorised(Hosted):
    @pytest.fixture(scope="class")
    def checkpoint(self, factorised):
        return factorised


def test_perplexity_and_pass_at_k_agree_with_transformers(data_dir):
    settings = default_settings(data_dir=data_dir, limit=3, samples=5, temperature=0.8, max_new_tokens=24)
    values = {}
    for engine in ("transformers", "vllm"):
        done = evaluate("tiny", ["toy-math", "tinystories"], settings, engine=engine, dtype="float32")
        outcomes = done.outcomes
        values[engine] = {metric.name: metric.value for metric in outcomes["tinystories"].metrics}
        names = {metric.name for metric in outcomes["toy-math"].metrics}
        assert "accuracy-pass@5" in names
        samples = outcomes["toy-math"].samples
        assert len(samples) == 15
        assert samples[0]["completion"] != samples[1]["completion"]
    assert values["vllm"] == pytest.approx(values["transformers"], rel=1e-4)


def test_a_task_file_is_evaluated_as_with_transformers_and_turns_end_alike(tmp_path):
    """Generated answers with stop strings, choices and perplexity; behind a prompt and behind a conversation."""
    rows = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes", "text": "3 plus 4"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, prompted = {"data": "rows.jsonl"}, ("vllmed-free", "vllmed-lines", "vllmed-choice")
    task = {
        "name": "vllmed",
        "train": {"data": "rows.jsonl", "form": "prompt-completion"},
        "benchmarks": [
            {"name": "free", "kind": "exact", "max_new_tokens": 12, **data},
            {"name": "lines", "kind": "match", "max_new_tokens": 12, "stop": [" y", "\n"], **data},
            {"name": "choice", "kind": "choice", "choices": ["yes", "no"], **data},
            {"name": "texts", "kind": "perplexity", "window": 8, **data},
        ],
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    save_chat_model(tmp_path / "chat", "<|im_start|>user\nIs 4 even?<|im_end|>\n<|im_start|>assistant\n")
    for model, style in (("tiny", "alpaca"), (str(tmp_path / "chat"), "chat")):
        outcomes = {}
        for engine in ("transformers", "vllm"):
            done = evaluate(model, [str(tmp_path / "task.yaml")], default_settings(), engine=engine, dtype="float32")
            assert done.failures == {}
            outcomes[engine] = done.outcomes
        assert set(outcomes["vllm"]) == {*prompted, "vllmed-texts"}
        for name, expected in outcomes["transformers"].items():
            outcome = outcomes["vllm"][name]
            ours, theirs = outcome.samples, expected.samples
            assert [m.value for m in outcome.metrics] == pytest.approx([m.value for m in expected.metrics], rel=1e-4)
            for fields in ("completion", "tokens", "finish_reason", "verdicts"):
                assert [s.get(fields) for s in ours] == [s.get(fields) for s in theirs]
            if name == "vllmed-choice":
                for by_vllm, by_transformers in zip(ours, theirs, strict=True):
                    likelihoods = by_transformers["loglikelihoods"]
                    assert by_vllm["loglikelihoods"] == pytest.approx(likelihoods, rel=1e-3, abs=1e-3)
        for name in prompted:
            assert {sample["variant"] for sample in outcomes["vllm"][name].samples} == {f"{name}-0shot-{style}"}
    free, lines = (outcomes["vllm"][name].samples for name in prompted[:2])
    assert (free[4]["finish_reason"], free[4]["tokens"] <= 3) == ("stop", True), "the end of its turn ended it"
    assert "length" in {sample["finish_reason"] for sample in free}
    assert any(" y" in sample["completion"] for sample in free)
    assert not any(" y" in sample["completion"] for sample in lines), "a stop string ended these"


def test_turns_of_every_family_end_alike_and_bos_is_there_once(tmp_path):
    rows = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = {"name": "free", "kind": "exact", "max_new_tokens": 12, "data": "rows.jsonl"}
    task = {"name": "families", "train": {"data": "rows.jsonl"}, "benchmarks": [part]}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    for name, family in FAMILIES.items():
        save_family_model(family, tmp_path / name, family.asked.format("Is 4 even?"))
        samples = {}
        for engine in ("transformers", "vllm"):
            done = evaluate(
                str(tmp_path / name), [str(tmp_path / "task.yaml")], default_settings(), engine=engine, dtype="float32"
            )
            assert done.failures == {}
            samples[engine] = done.outcomes["families-free"].samples
        assert samples["vllm"] == samples["transformers"]
        assert {sample["variant"] for sample in samples["vllm"]} == {"families-free-0shot-chat"}
        ended = samples["vllm"][4]
        assert (ended["finish_reason"], ended["tokens"] <= 3) == ("stop", True), "the end of its turn ended it"
        assert not any(token in ended["completion"] for token in (family.end, *family.plain))
        assert "length" in {sample["finish_reason"] for sample in samples["vllm"]}


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
