import copy
import math
import os

import pytest
import torch
from accelerate import PartialState
from transformers import TrainingArguments

from lowrank_bench.evals.tasks.prompts import Encoded
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import random_model
from lowrank_bench.runners.training.data import IGNORED, TaskData, collate
from lowrank_bench.runners.training.divergence import Diverged, require_finite
from lowrank_bench.runners.training.one_device import OneDeviceArguments
from lowrank_bench.runners.training.settings import TrainSettings
from lowrank_bench.runners.training.trainer import TaskTrainer

ITEMS = [Encoded([1, 5, 6 + i, 7, 2], [IGNORED, IGNORED, 6 + i, 7, 2]) for i in range(8)]
SETTINGS = TrainSettings(
    steps=4, learning_rate=1e-2, batch_size=4, micro_batch_size=4, gradient_checkpointing=False, precision="float32"
)


def trainer(settings=SETTINGS, items=ITEMS, **more):
    return TaskTrainer(TaskData(items, 0, 0, 42), settings, **more)


def test_collate_pads_on_the_right():
    batch = collate([Encoded([1, 5, 2], [IGNORED, 5, 2]), Encoded([1], [IGNORED])], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 5, 2], [1, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 5, 2], [IGNORED] * 3]


def test_training_lowers_the_loss_and_counts_tokens():
    model = random_model("llama")
    log = trainer().train(model, 4)
    more = trainer().train(model, 40)
    assert log.steps == 4
    assert log.tokens == 4 * 4 * 5
    assert more.loss < log.loss


def test_equal_seeds_give_equal_weights_and_other_seeds_others():
    def weights(seed):
        model = random_model("llama")
        trainer(seed=seed).train(model, 3)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"},
        {"ACCELERATE_TORCH_DEVICE": "meta"},
        {"LOCAL_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "0"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_launcher_settings_in_the_environment_change_nothing(monkeypatch, variables):
    expected, model = random_model("llama"), random_model("llama")
    trainer().train(expected, 2)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer().train(model, 2)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))
    assert os.environ.items() >= variables.items()


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:7", 7)])
def test_of_several_gpus_the_named_one_trains_alone(monkeypatch, tmp_path, device, index):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: taken.append(torch.device(device).index))
    arguments = OneDeviceArguments(str(tmp_path), named_device=device, per_device_train_batch_size=16, report_to=[])
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 16)
    assert arguments.device == torch.device("cuda", index)
    assert PartialState().device == arguments.device
    assert taken[-1] == index
    assert TrainingArguments(str(tmp_path), per_device_train_batch_size=16, report_to=[]).train_batch_size == 128
    monkeypatch.undo()
    assert OneDeviceArguments(str(tmp_path), use_cpu=True, report_to=[]).device == torch.device("cpu")


def test_accumulated_gradients_equal_one_large_batch():
    whole, parts = random_model("llama"), random_model("llama")
    trainer().train(whole, 2)
    trainer(SETTINGS.model_copy(update={"micro_batch_size": 2})).train(parts, 2)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_only_answers_are_learnt():
    silent = [Encoded(item.input_ids, [IGNORED] * 5) for item in ITEMS[:4]] + ITEMS[4:]
    model, other = random_model("llama"), random_model("llama")
    settings = SETTINGS.model_copy(update={"batch_size": 8, "micro_batch_size": 8})
    trainer(settings, silent).train(model, 1)
    trainer(settings, [Encoded([1, 9, 9, 9, 2], item.labels) for item in silent[:4]] + ITEMS[4:]).train(other, 1)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_hook_sees_gradients_before_each_update():
    model, seen = random_model("llama"), []
    weight = model.model.layers[0].mlp.up_proj.weight
    before = copy.deepcopy(weight.detach())

    def hook(step, tokens):
        if step == 0:
            assert torch.equal(weight, before)
        assert weight.grad is not None
        seen.append((step, tokens))

    trainer().train(model, 3, on_gradients=hook)
    assert seen == [(0, 0), (1, 20), (2, 40)]


def test_the_fused_optimizer_differs_by_rounding():
    plain, fused = random_model("llama"), random_model("llama")
    trainer().train(plain, 4)
    trainer(SETTINGS.model_copy(update={"optimizer": "adamw_torch_fused"})).train(fused, 4)
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_learning_rate_scale_is_applied():
    still = random_model("llama")
    reference = copy.deepcopy(still)
    trainer().train(still, 1, lr_scale=1e-12)
    for a, b in zip(still.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_overflow_in_the_last_update_are_not_returned(value):
    model = random_model("llama")

    def spoil(step, tokens):
        if step == 3:
            model.model.layers[0].mlp.up_proj.weight.grad.fill_(value)

    with pytest.raises(Diverged, match="no longer finite after the last of 4 steps of a training; lower") as error:
        trainer(title="a training").train(model, 4, on_gradients=spoil)
    assert (error.value.steps, error.value.tokens) == (4, 4 * 4 * 5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_a_recovery_merges_has_to_be_finite(value):
    model = random_model("llama")
    require_finite(model, "4 steps of a training", 0.1, 4, 9)
    model.model.norm.weight.data[3] = value
    sentence = r"no longer finite after 4 steps of a training; lower the learning rate \(now 0.1\) with --lr"
    with pytest.raises(Diverged, match=sentence) as error:
        require_finite(model, "4 steps of a training", 0.1, 4, 9)
    assert (error.value.steps, error.value.tokens) == (4, 9)


def test_nan_loss_names_stage_and_step():
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(math.nan)
    with pytest.raises(UserError, match=r"nan at step 1 of 4 in finetune tiny.*--lr"):
        trainer(title="finetune tiny").train(model, 4)


def test_steps_from_epochs():
    settings = TrainSettings(epochs=3, batch_size=128)
    assert settings.total_steps(1000) == 24
    assert settings.total_steps(1) == 3
    assert TrainSettings(steps=7, epochs=3).total_steps(10**6) == 7


def test_batch_must_divide():
    with pytest.raises(UserError, match="multiple"):
        trainer(SETTINGS.model_copy(update={"batch_size": 4, "micro_batch_size": 3})).train(random_model("llama"), 1)
