import json
import math
from dataclasses import replace

import pytest
import trained_together
from harness_tasks import write_tasks
from sweeps import small_sweep

from lowrank_bench.evals.harness.model import encode
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.estimates import TRAINED_BYTES, training_checkpoint_bytes
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.matrices import model_size
from lowrank_bench.runners.estimates.arithmetic import Arithmetic
from lowrank_bench.runners.estimates.assumptions import VLLM_START_SECONDS
from lowrank_bench.runners.estimates.disk import checkpoint_bytes
from lowrank_bench.runners.estimates.lengths import Lengths
from lowrank_bench.runners.estimates.seconds import estimate
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.specs import EvaluateStage
from lowrank_bench.runners.store.folders import resume_folder
from lowrank_bench.runners.training.data import TaskData
from lowrank_bench.runners.training.resuming import Resumable
from lowrank_bench.runners.training.trainer import TaskTrainer

BESIDE_BYTES = 64 << 10
"""Random state, schedule, names and settings in a checkpoint."""


def on_disk(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def trainer(tmp_path):
    """Return a trainer that keeps a checkpoint after each update, and the sizes that these had."""
    sizes = []

    def look(done, total):
        sizes.extend(on_disk(path) for path in tmp_path.glob("r/run-0/*"))

    data = TaskData(trained_together.ITEMS, 0, 0, 42)
    return TaskTrainer(
        data, trained_together.SETTINGS, extra_steps=3, resumable=Resumable(tmp_path / "r", 0.0), progress=look
    ), sizes


@pytest.mark.parametrize(
    "options",
    [{}, {"train_others": False}, {"criterion": "taylor"}, {"criterion": "hessian"}, {"new_vectors": "top"}],
    ids=str,
)
def test_checkpoints_of_basis_selection_take_what_was_estimated(trainer, options):
    bs, model, budget = create_method("bs", {"prunings": 3, **options}), random_model("llama", width=256), Budget(3.0)
    estimated = training_checkpoint_bytes(bs, model, budget)
    assert estimated < TRAINED_BYTES * model_size(model).parameters / 3
    data = TaskData(trained_together.ITEMS, 0, 0, 42)
    bs.compress(model, bs.fit(model, data), budget, trainer[0], data)
    assert trainer[1]
    assert 0.8 * estimated < max(trainer[1]) < estimated + BESIDE_BYTES


def test_checkpoints_of_a_whole_model_take_what_was_estimated(trainer):
    model = random_model("llama", width=256)
    estimated = training_checkpoint_bytes(create_method("svd"), model, Budget(2.0))
    trainer[0].train(model, 2)
    assert 0.95 * estimated < max(trainer[1]) < estimated + BESIDE_BYTES


def test_a_plan_estimates_two_checkpoints_of_each_training_at_once_less_what_lies_there(tmp_path, monkeypatch):
    assert checkpoint_bytes(make_plan(small_sweep(tmp_path))) == 0  # done before it keeps any
    monkeypatch.setattr("lowrank_bench.runners.estimates.disk.SMALL_MODEL_PARAMETERS", 1)
    one_worker, two_workers = (make_plan(small_sweep(tmp_path, workers=workers)) for workers in (1, 2))
    whole = 2 * TRAINED_BYTES * one_worker.parameters
    assert checkpoint_bytes(one_worker) == whole
    assert checkpoint_bytes(two_workers) == whole + whole // 2  # a recovery trains the half of it
    assert checkpoint_bytes(make_plan(small_sweep(tmp_path, workers=2, checkpoint_minutes=math.inf))) == 0

    lies = tmp_path / "stages"
    for key, stage in one_worker.stages.items():
        if stage.kind in ("finetune", "recover"):
            folder = resume_folder(lies, key) / "run-0" / "checkpoint-1"
            folder.mkdir(parents=True)
            (folder / "optimizer.pt").write_bytes(bytes(1000))
    assert checkpoint_bytes(one_worker) == whole - 1000
    assert checkpoint_bytes(two_workers) == whole + whole // 2 - 2000


def test_a_plan_of_basis_selection_alone_estimates_less(tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank_bench.runners.estimates.disk.SMALL_MODEL_PARAMETERS", 1)
    changes = {"methods": ["bs:trajectory=true"], "finetune": {"steps": 0}, "recover": {"steps": 0}}
    plan = make_plan(small_sweep(tmp_path, **changes, extra_pruning_steps=4, workers=1))
    (stage,) = (stage for stage in plan.stages.values() if stage.kind == "compress")
    bs = create_method("bs", stage.spec.options)
    assert checkpoint_bytes(plan) == 2 * training_checkpoint_bytes(bs, plan.skeleton, Budget(4.0)) > 0


@pytest.mark.parametrize("method", ["svd-llm", "drone", "svd-llm-v2"])
def test_fewer_tokens_than_inputs_cost_an_svd_in_place_of_an_eigendecomposition(tmp_path, method):
    def decompositions(samples):
        plan = make_plan(small_sweep(tmp_path, methods=[f"{method}:samples={samples}"], ratios=[2]))
        works = {stage.kind: Arithmetic(plan).work(key) for key, stage in plan.stages.items() if stage.data}
        work = works["fit"]
        return work.decomposition, work.eigen

    (few, eigen), (many, same) = decompositions(1), decompositions(64)
    assert few > many == 0
    assert eigen == same > 0


def test_starting_vllm_on_a_cpu_counts_where_no_process_of_it_waits(tmp_path, monkeypatch):
    def evaluations(engine):
        plan = make_plan(small_sweep(tmp_path, engine=engine, ratios=[2]))
        seconds = estimate(plan).seconds
        return [seconds[key] for key, stage in plan.stages.items() if stage.kind == "evaluate"]

    monkeypatch.setattr("lowrank_bench.runners.estimates.seconds.REUSE_BYTES", 0)
    without, starting = evaluations("transformers"), evaluations("vllm")
    monkeypatch.undo()
    waiting = evaluations("vllm")
    assert [b - a for a, b in zip(waiting, starting, strict=True)] == pytest.approx([VLLM_START_SECONDS] * len(waiting))
    assert waiting == pytest.approx(without)


def test_a_task_of_lm_eval_that_generates_counts_two_tokenizer_loads_and_others_count_one(tmp_path):
    """One class serves both kinds: the task says whether it generates."""
    names = ["toy-math", "lm_eval:local_generated", "lm_eval:local_choice"]
    folder = tmp_path / "tasks"
    folder.mkdir()
    config = small_sweep(tmp_path / "runs", benchmarks=names, include_path=write_tasks(folder), ratios=[2])
    arithmetic = Arithmetic(plan := make_plan(config))
    loads = {
        stage.spec.benchmark: arithmetic.work(key).tokenizers
        for key, stage in plan.stages.items()
        if isinstance(stage, EvaluateStage)
    }
    assert [loads[name] for name in names] == [2, 2, 1]


def test_what_tasks_of_lm_eval_generate_score_and_read_is_counted_on_their_own_requests(tmp_path):
    names = ["lm_eval:local_generated", "lm_eval:local_choice", "lm_eval:local_sized", "lm_eval:local_texts"]
    folder = tmp_path / "tasks"
    folder.mkdir()
    whole = {"limit": None, "max_new_tokens": None}
    config = small_sweep(tmp_path / "runs", benchmarks=names, include_path=write_tasks(folder), ratios=[2], **whole)
    lengths = Lengths(plan := make_plan(config))
    settings = {s.spec.benchmark: s.settings for s in plan.stages.values() if isinstance(s, EvaluateStage)}
    generated, choice, group, texts = (lengths.evaluation(name, settings[name]) for name in names)
    assert (generated.requests, generated.written, generated.scored) == (7, 24, 0), "max_gen_toks of its YAML"
    assert (choice.requests, group.requests, choice.written, group.written) == (14, 20, 0, 0), "two options a problem"
    tokenizer = load_tokenizer(plan.source.location)
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    assert texts.scored == texts.tokens_read == sum(len(encode(tokenizer, row["text"])) for row in rows)
    assert choice.requests <= choice.scored < choice.tokens_read < group.tokens_read
    fewer = lengths.evaluation(names[0], replace(settings[names[0]], limit=3, max_new_tokens=9))
    assert (fewer.requests, fewer.written) == (3, 9)
    work = {s.spec.benchmark: Arithmetic(plan).work(k) for k, s in plan.stages.items() if isinstance(s, EvaluateStage)}
    assert [work[name].generation > 0 for name in names] == [True, False, False, False]
