"""Trainings that begin later in the data's order: the two phases of a recovery read what one training reads."""

import pytest
import torch
import trained_together

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.recoveries.base import create_recovery
from lowrank_bench.methods.recovery_contract import compressed
from lowrank_bench.models.architectures import random_model
from lowrank_bench.runners.training.data import TaskData
from lowrank_bench.runners.training.resuming import Resumable
from lowrank_bench.runners.training.trainer import TaskTrainer

STEPS = trained_together.STEPS
MICRO = {"one pass": {}, "several passes": {"micro_batch_size": 4}}


class Cut(BaseException):
    """Ends a training as a signal does."""


def trainer_of(folder=None, progress=None, **settings):
    chosen = trained_together.SETTINGS.model_copy(update=settings)
    resumable = Resumable(folder, 0.0) if folder else None
    data = TaskData(trained_together.ITEMS, 0, 0, 42)
    return TaskTrainer(data, chosen, resumable=resumable, progress=progress)


def inputs(trainer, runs):
    """Return the token ids of every batch that some runs (steps, start) read, and the runs' logs."""
    seen, model = [], random_model("llama")
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True)
    return seen, [trainer.train(model, steps, start=start) for steps, start in runs]


# An epoch has three updates, so the second run begins within an epoch, between two, or in a later one.
@pytest.mark.parametrize("first", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("settings", MICRO.values(), ids=MICRO)
def test_two_runs_read_the_batches_of_one(settings, first):
    whole, (log,) = inputs(trainer_of(**settings), [(STEPS, 0)])
    parts, logs = inputs(trainer_of(**settings), [(first, 0), (STEPS - first, first)])
    assert parts == whole
    assert sum(part.tokens for part in logs) == log.tokens
    assert [part.steps for part in logs] == [first, STEPS - first]


def test_a_later_run_has_a_warm_up_and_a_decay_of_its_own():
    def rates(start):
        trainer, seen = trainer_of(warmup=0.3), []
        trainer.train(
            random_model("llama"),
            4,
            start=start,
            on_step=lambda step, tokens: seen.append((step, trainer._running.optimizer.param_groups[0]["lr"])),
        )
        return seen

    assert rates(5) == rates(0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_floor_of_the_cosine_is_a_share_of_the_peak(rate):
    trainer, seen = trainer_of(warmup=0.0), []
    trainer.train(
        random_model("llama"),
        20,
        min_lr_rate=rate,
        on_step=lambda step, tokens: seen.append(trainer._running.optimizer.param_groups[0]["lr"]),
    )
    peak = trained_together.SETTINGS.learning_rate
    assert seen[0] == peak
    assert seen[10] == pytest.approx((rate + (1 - rate) / 2) * peak)
    assert rate * peak < seen[-1] < (rate + 0.01) * peak


def test_a_floor_belongs_to_the_cosine():
    with pytest.raises(UserError, match="this is linear; write schedule: cosine"):
        trainer_of(schedule="linear").train(random_model("llama"), 4, min_lr_rate=0.1)


def test_gradient_checkpointing_reaches_adapters():
    plain, saved = compressed("llama"), compressed("llama")
    for model, saves in ((plain, False), (saved, True)):
        create_recovery("lora", {"lora_dropout": 0.0}).recover(
            model, trainer_of(gradient_checkpointing=saves), 6, 1.0, 3
        )
    before = compressed("llama").state_dict()
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-6, rtol=1e-4)
        assert torch.equal(value, before[name]) != (".lr_" in name), name


def recover(folder=None, stop=None, options=None):
    """Return the weights after the recovery lora, its logs, and the numbers of steps that it reported."""
    model, calls = compressed("qwen2"), []

    def progress(done, total):
        calls.append(done)
        if len(calls) == stop:
            raise Cut

    trainer = trainer_of(folder, progress, micro_batch_size=4)
    phases = create_recovery("lora", options).recover(model, trainer, STEPS, 1.0, 3)
    return torch.cat([value.flatten() for value in model.state_dict().values()]), phases, calls


# Of seven steps three are of phase 1; the second call of phase 2 is its fifth.
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 7], ids=lambda stop: f"phase {1 + (stop > 3)}, call {stop}")
def test_a_recovery_cut_off_in_either_phase_ends_as_the_uninterrupted_one(tmp_path, stop):
    whole, log, _ = recover()
    with pytest.raises(Cut):
        recover(tmp_path / "r", stop)
    resumed, phases, calls = recover(tmp_path / "r")
    assert torch.equal(resumed, whole)
    assert [(p.name, p.log.steps, p.log.tokens, p.log.loss) for p in phases] == [
        (p.name, p.log.steps, p.log.tokens, p.log.loss) for p in log
    ]
    if stop > 4:
        assert calls[0] == 3, "phase 1 was trained from its beginning"
        assert calls[1] == stop, "phase 2 was trained from its beginning"
