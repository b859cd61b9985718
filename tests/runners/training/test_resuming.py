import multiprocessing as mp
import os
import signal
import time

import pytest
import torch
import trained_together

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.runners.training.data import TaskData
from lowrank_bench.runners.training.resuming import Resumable, RunOrigin
from lowrank_bench.runners.training.trainer import TaskTrainer

STEPS = trained_together.STEPS
BUILDERS = {
    "dense": lambda: random_model("llama"),
    "tied": lambda: random_model("qwen2", tied=True),
    "names of another format on disk": lambda: random_model("gpt-neox"),
    "factorised": trained_together.factorised,
}


class Cut(BaseException):
    """Ends a training as a signal does."""


def train(model, folder=None, progress=None, minutes=0.0, **origin):
    settings = trained_together.SETTINGS.model_copy(update={"micro_batch_size": 4})
    resumable = Resumable(folder, minutes, origin=RunOrigin(**origin)) if folder else None
    data = TaskData(trained_together.ITEMS, 0, 0, 42)
    return TaskTrainer(data, settings, resumable=resumable, progress=progress).train(model, STEPS)


def cut_at(step):
    def progress(done, total):
        if done == step:
            raise Cut

    return progress


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# An epoch has three updates: checkpoint 3 lies between two epochs, checkpoint 4 within one.
@pytest.mark.parametrize(("kind", "step"), [("dense", 4), *((kind, 5) for kind in BUILDERS)])
def test_a_resumed_training_is_the_uninterrupted_one_bit_by_bit(tmp_path, kind, step):
    whole, first, second = (BUILDERS[kind]() for _ in range(3))
    log = train(whole)
    with pytest.raises(Cut):
        train(first, tmp_path / "r", cut_at(step))
    assert [path.name for path in (tmp_path / "r" / "run-0").iterdir()] == [f"checkpoint-{step - 1}"]
    seen = []
    resumed = train(second, tmp_path / "r", lambda done, total: seen.append(done))
    assert seen == list(range(step, STEPS + 1))
    assert torch.equal(weights(second), weights(whole))
    assert (resumed.steps, resumed.tokens, resumed.loss) == (log.steps, log.tokens, log.loss)
    assert 0 < resumed.resumed_seconds < resumed.seconds


SELECTIONS = {
    "authors' start": {},
    "matrices whose w gets shorter": {"new_vectors": "top", "criterion": "taylor"},
    "one threshold, nothing else trained": {"scope": "global", "train_others": False, "additional_dimension": 0},
    "second order": {"criterion": "hessian", "hessian_samples": 16},
    "a final policy": {"final_policy": "greedy", "final_samples": 8},
    "the authors' code": {
        "min_lr_rate": 0.1,
        "drop_below": 0.1,
        "counting": "epoch",
        "prune_before": "forward",
        "threshold": "constant",
    },
    "narrow bases": {"bases_dtype": "bfloat16"},
    "a trajectory": {"trajectory": True},
    "a tied embedding": {"embeddings": True, "trajectory": True, "new_vectors": "top", "additional_share": 0.5},
}
RATIOS = (1.3, 2.0)


def select(options, folder, output, progress=None):
    """Return what Basis Selection made: weights, reports and bases by ratio, and the steps that this process did."""
    model, seen, results = random_model("llama", tied=options.get("embeddings")), [], {}
    bs = create_method("bs", {"prunings": 5, **options})

    def note(done, total):
        seen.append(done)
        if progress:
            progress(done, total)

    def emit(budget, small, report):
        ratio_folder = output / f"ratio-{budget.ratio:g}"
        ratio_folder.mkdir(parents=True)
        torch.save((small.state_dict(), report.summary(), report.tensors), ratio_folder / "made.pt")

    data = TaskData(trained_together.ITEMS, 0, 0, 42)
    resumable = Resumable(folder, 0.0, output) if folder else None
    settings = trained_together.SETTINGS.model_copy(update={"micro_batch_size": 4})
    trainer = TaskTrainer(data, settings, extra_steps=8, resumable=resumable, progress=note)
    output.mkdir()
    budgets = [Budget(ratio) for ratio in (RATIOS if bs.trajectory else RATIOS[1:])]
    bs.compress_path(model, bs.fit(model, data), budgets, trainer, emit, data)
    for file in sorted(output.glob("*/made.pt")):
        state, report, tensors = torch.load(file)
        results[file.parent.name] = {"report": report} | state | tensors
    return results, seen


@pytest.mark.parametrize(
    ("kind", "step"), [("a trajectory", 2), ("a trajectory", 8), *((kind, 5) for kind in SELECTIONS)]
)
def test_a_resumed_selection_is_the_uninterrupted_one_bit_by_bit(tmp_path, monkeypatch, kind, step):
    if "shorter" in kind:
        monkeypatch.setattr("lowrank_bench.methods.library.bs.run.SHRINK_FROM", 8)
    options = SELECTIONS[kind]
    uninterrupted, _ = select(options, None, tmp_path / "whole")
    with pytest.raises(Cut):
        select(options, tmp_path / "r", tmp_path / "first", cut_at(step))
    resumed, seen = select(options, tmp_path / "r", tmp_path / "second")
    assert seen == list(range(step, 9))
    assert resumed.keys() == uninterrupted.keys()
    for ratio, expected in uninterrupted.items():
        assert resumed[ratio].pop("report") == expected.pop("report")
        assert resumed[ratio].keys() == expected.keys()
        assert all(torch.equal(resumed[ratio][name], tensor) for name, tensor in expected.items())


def test_what_calls_back_and_keeps_no_state_begins_again(tmp_path):
    trainer = TaskTrainer(
        TaskData(trained_together.ITEMS, 0, 0, 42), trained_together.SETTINGS, resumable=Resumable(tmp_path / "r", 0.0)
    )
    trainer.train(random_model("llama"), 3, on_gradients=lambda step, tokens: None)
    assert not (tmp_path / "r").exists()


def test_of_several_trainings_each_goes_on_from_its_own_checkpoint(tmp_path):
    def both(folder=None, stop=None):
        models, calls = [random_model("llama"), random_model("qwen2")], []

        def progress(done, total):
            calls.append(done)
            if len(calls) == stop:
                raise Cut

        settings = trained_together.SETTINGS.model_copy(update={"micro_batch_size": 4})
        resumable = Resumable(folder, 0.0) if folder else None
        data = TaskData(trained_together.ITEMS, 0, 0, 42)
        trainer = TaskTrainer(data, settings, resumable=resumable, progress=progress)
        for model in models:
            trainer.train(model, 4)
        return [weights(model) for model in models], calls

    uninterrupted, _ = both()
    with pytest.raises(Cut):
        both(tmp_path / "r", 7)
    resumed, calls = both(tmp_path / "r")
    assert all(torch.equal(a, b) for a, b in zip(resumed, uninterrupted, strict=True))
    assert calls == [4, 3, 4]


def test_training_twice_cut_off_counts_everything_once(tmp_path):
    whole = random_model("llama")
    log = train(whole)
    for step in (3, 5):
        with pytest.raises(Cut):
            train(random_model("llama"), tmp_path / "r", cut_at(step))
    model = random_model("llama")
    assert train(model, tmp_path / "r").tokens == log.tokens
    assert torch.equal(weights(model), weights(whole))


@pytest.mark.parametrize("damage", ["flip", "cut", "seal"])
def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path, capfd, damage):
    whole = random_model("llama")
    train(whole)
    with pytest.raises(Cut):
        train(random_model("llama"), tmp_path / "r", cut_at(4))
    (checkpoint,) = (tmp_path / "r" / "run-0").iterdir()
    file = checkpoint / ("seal.json" if damage == "seal" else "optimizer.pt")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.unlink() if damage == "seal" else file.write_bytes(raw if damage == "flip" else raw[:-9])
    capfd.readouterr()
    model, seen = random_model("llama"), []
    train(model, tmp_path / "r", lambda done, total: seen.append(done))
    assert "checkpoint-3 is passed over" in capfd.readouterr().err
    assert seen == list(range(1, STEPS + 1))
    assert torch.equal(weights(model), weights(whole))


def test_a_checkpoint_written_over_a_damaged_one_is_whole(tmp_path):
    whole, model, seen = random_model("llama"), random_model("llama"), []
    train(whole)
    for _ in range(2):
        with pytest.raises(Cut):
            train(random_model("llama"), tmp_path / "r", cut_at(3))
        file = tmp_path / "r" / "run-0" / "checkpoint-2" / "optimizer.pt"
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Cut):
        train(random_model("llama"), tmp_path / "r", cut_at(3))
    train(model, tmp_path / "r", lambda done, total: seen.append(done))
    assert seen == list(range(3, STEPS + 1))
    assert torch.equal(weights(model), weights(whole))


@pytest.mark.parametrize("fact", ["inputs", "code"])
def test_a_checkpoint_of_another_origin_is_passed_over(tmp_path, capfd, fact):
    facts = {"inputs": {"fit": "one"}, "code": "one"}
    with pytest.raises(Cut):
        train(random_model("llama"), tmp_path / "r", cut_at(4), **facts)
    seen = []
    other = facts | ({"code": "two"} if fact == "code" else {"inputs": {"fit": "two"}})
    train(random_model("llama"), tmp_path / "r", lambda done, total: seen.append(done), **other)
    assert seen == list(range(1, STEPS + 1))
    assert {"inputs": "starts from", "code": "other code"}[fact] in capfd.readouterr().err


class Counter:
    """A method's state."""

    def __init__(self):
        self.calls = 0

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_a_method_does_not_go_on_from_a_checkpoint_without_its_state(tmp_path, capfd):
    with pytest.raises(Cut):
        train(random_model("llama"), tmp_path / "r", cut_at(4))
    counter, data = Counter(), TaskData(trained_together.ITEMS, 0, 0, 42)
    trainer = TaskTrainer(data, trained_together.SETTINGS, resumable=Resumable(tmp_path / "r", 0.0))

    def count(step, tokens):
        counter.calls += 1

    trainer.train(random_model("llama"), STEPS, on_gradients=count, state=counter)
    assert "another method" in capfd.readouterr().err
    assert counter.calls == STEPS


def test_what_was_never_whole_is_removed_before_the_next_is_written(tmp_path):
    with pytest.raises(Cut):
        train(random_model("llama"), tmp_path / "r", cut_at(4))
    folder, seen = tmp_path / "r" / "run-0", []
    for name in ("checkpoint-4", "tmp-checkpoint-2"):
        (folder / name).mkdir()
        (folder / name / "optimizer.pt").write_text("cut off")

    def look(done, total):
        seen.append(sorted(path.name for path in folder.iterdir()))

    train(random_model("llama"), tmp_path / "r", look)
    assert seen[0] == ["checkpoint-3"]
    assert all(len(names) == 1 for names in seen)


def test_the_memory_of_the_attempt_that_was_cut_off_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank_bench.runners.training.trainer.peak_memory_bytes", lambda: 1 << 50)
    with pytest.raises(Cut):
        train(random_model("llama"), tmp_path / "r", cut_at(4))
    monkeypatch.undo()
    with pytest.raises(Cut):
        train(random_model("llama"), tmp_path / "r", cut_at(5))
    assert train(random_model("llama"), tmp_path / "r").resumed_peak_memory_bytes == 1 << 50


def test_short_trainings_write_none(tmp_path):
    train(random_model("llama"), tmp_path / "r", minutes=30)
    assert not (tmp_path / "r").exists()


def _train_slowly(folder):
    train(random_model("llama"), folder, lambda done, total: time.sleep(0.5))


def test_a_killed_training_goes_on(tmp_path):
    whole, seen = random_model("llama"), []
    train(whole)
    process = mp.get_context("spawn").Process(target=_train_slowly, args=(tmp_path / "r",))
    process.start()
    while not list(tmp_path.glob("r/run-0/checkpoint-*/seal.json")):
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    model = random_model("llama")
    train(model, tmp_path / "r", lambda done, total: seen.append(done))
    assert 1 < seen[0] <= STEPS
    assert torch.equal(weights(model), weights(whole))
