import multiprocessing as mp
import os
import signal
import time

import pytest
import torch
import trained_together

from lowrank_bench.models.architectures import random_model
from lowrank_bench.runners.data import TaskData
from lowrank_bench.runners.resuming import Resumable
from lowrank_bench.runners.training import TaskTrainer

STEPS = trained_together.STEPS
BUILDERS = {
    "dense": lambda: random_model("llama"),
    "tied": lambda: random_model("qwen2", tied=True),
    "names of another format on disk": lambda: random_model("gpt-neox"),
    "factorised": trained_together.factorised,
}


class Cut(BaseException):
    """Ends a training as a signal does."""


def train(model, folder=None, progress=None, minutes=0.0):
    settings = trained_together.SETTINGS.model_copy(update={"micro_batch_size": 4})
    resumable = Resumable(folder, minutes) if folder else None
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
    assert [path.name for path in (tmp_path / "r").iterdir()] == [f"checkpoint-{step - 1}"]
    seen = []
    resumed = train(second, tmp_path / "r", lambda done, total: seen.append(done))
    assert seen == list(range(step, STEPS + 1))
    assert torch.equal(weights(second), weights(whole))
    assert (resumed.steps, resumed.tokens, resumed.loss) == (log.steps, log.tokens, log.loss)
    assert 0 < resumed.resumed_seconds < resumed.seconds


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
    (checkpoint,) = (tmp_path / "r").iterdir()
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
    while not list(tmp_path.glob("r/checkpoint-*/seal.json")):
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    model = random_model("llama")
    train(model, tmp_path / "r", lambda done, total: seen.append(done))
    assert 1 < seen[0] <= STEPS
    assert torch.equal(weights(model), weights(whole))
