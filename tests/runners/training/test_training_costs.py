"""What a training spends beside its arithmetic: waiting for the device, padding, copies of weights."""

import copy
import random
import traceback
from collections import Counter
from itertools import chain, pairwise

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler

from lowrank_bench.evals.tasks.prompts import Encoded
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.runners.training import trainer as training
from lowrank_bench.runners.training.batches import Examples, StepSampler
from lowrank_bench.runners.training.data import IGNORED, TaskData, collate
from lowrank_bench.runners.training.resuming import Resumable
from lowrank_bench.runners.training.settings import TrainSettings
from lowrank_bench.runners.training.trainer import TaskTrainer

STEP = 8
SETTINGS = TrainSettings(
    steps=4, learning_rate=1e-3, batch_size=STEP, micro_batch_size=2, gradient_checkpointing=False, precision="float32"
)


def examples(count=21):
    """Return examples of 4 to 40 tokens; an epoch of 21 ends with a step of five."""
    draw = random.Random(3)
    rows = [[draw.randrange(3, 60) for _ in range(draw.randrange(4, 41))] for _ in range(count)]
    return [Encoded(row, [IGNORED, IGNORED, *row[2:]]) for row in rows]


def trainer(items, changes=None, **more):
    return TaskTrainer(TaskData(items, 0, 0, 42), SETTINGS.model_copy(update=changes or {}), **more)


class Reads(TorchDispatchMode):
    """Counts numbers that Python reads of tensors, which on a GPU waits for all that was started before."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = traceback.extract_stack()
            # transformers' attention masks ask in each forward pass whether anything is padded.
            self.counts["masks" if any("masking_utils" in frame.filename for frame in frames) else "others"] += 1
        return func(*args, **(kwargs or {}))


def test_the_device_is_waited_for_once_an_update_not_once_a_pass():
    def count(micro):
        reads = Reads()
        with reads:
            trainer(examples(24), {"micro_batch_size": micro, "steps": 6}).train(random_model("llama"), 6)
        return reads.counts["others"]

    assert count(1) == count(2) == count(4)


@pytest.mark.parametrize("bad", [0, 2, 3])
def test_a_loss_that_is_no_number_in_any_pass_is_refused_before_the_update(bad):
    model, passes = random_model("llama"), []
    before = copy.deepcopy(model.state_dict())

    def spoil(module, args, output):
        passes.append(None)
        if len(passes) == bad + 1:
            output.loss = output.loss * torch.inf
        return output

    model.register_forward_hook(spoil)
    words = r"the loss became inf at step 1 of 4 in finetune x; lower the learning rate \(now 0\.0\d+\) with --lr"
    with pytest.raises(UserError, match=words):
        trainer(examples(24), title="finetune x").train(model, 4)
    assert len(passes) == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt-neox"])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_a_step_sorted_by_length_has_the_gradient_of_one_large_batch(family, micro):
    """Also in an epoch's last step, which is of five examples; in float64, where no rounding hides anything."""

    def gradients(micro):
        model, per_step = random_model(family).double(), []

        def look(step, tokens):
            per_step.append((tokens, torch.cat([p.grad.flatten() for p in model.parameters()])))

        changes = {"batch_size": 6, "micro_batch_size": micro, "max_grad_norm": 1e9}
        log = trainer(examples(17), changes).train(model, 5, on_gradients=look)
        return per_step, log

    (split, log), (whole, expected) = gradients(micro), gradients(6)
    assert [tokens for tokens, _ in split] == [tokens for tokens, _ in whole]
    for (_, a), (_, b) in zip(split, whole, strict=True):
        assert (a - b).norm() < 1e-6 * b.norm()
    assert (log.tokens, log.loss) == (expected.tokens, pytest.approx(expected.loss, rel=1e-6))


def watch(monkeypatch):
    """Return a list that gets the width and the examples' lengths of each batch that is made."""
    batches = []

    def look(items, pad_token_id):
        batch = collate(items, pad_token_id)
        batches.append((batch["input_ids"].shape[1], [len(item.input_ids) for item in items]))
        return batch

    monkeypatch.setattr(training, "collate", look)
    return batches


def padding(batches):
    return sum(width * len(lengths) - sum(lengths) for width, lengths in batches)


def steps_of(batches):
    """Return the sorted lengths of each step of four passes."""
    return [sorted(chain(*(lengths for _, lengths in batches[at : at + 4]))) for at in range(0, len(batches), 4)]


def test_passes_of_a_step_hold_examples_of_like_length(monkeypatch):
    batches = watch(monkeypatch)
    trainer(examples(24)).train(random_model("llama"), 3)
    ours = batches[:12]
    for at in (0, 4, 8):
        widths = [width for width, _ in ours[at : at + 4]]
        assert widths == sorted(widths, reverse=True)
    batches.clear()
    monkeypatch.setattr(training, "StepSampler", lambda examples, seed, multiple, step: StepSampler(examples, seed))
    trainer(examples(24)).train(random_model("llama"), 3)
    seeded = batches[:12]
    assert steps_of(ours) == steps_of(seeded)
    assert padding(ours) < 0.5 * padding(seeded)


def test_a_step_of_one_pass_keeps_its_order(monkeypatch):
    shapes = watch(monkeypatch)
    samplers = []
    monkeypatch.setattr(training, "StepSampler", lambda *args: samplers.append(args))
    trainer(examples(24), {"micro_batch_size": STEP}).train(random_model("llama"), 3)
    assert samplers == []
    assert len(shapes) == 3


def test_a_loss_that_is_a_mean_of_each_pass_is_not_divided_otherwise(monkeypatch):
    samplers = []
    monkeypatch.setattr(training, "StepSampler", lambda *args: samplers.append(args))
    model = random_model("llama")
    model.accepts_loss_kwargs = False
    trainer(examples(24)).train(model, 1)
    assert samplers == []


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_share_the_same_steps(count):
    data = Examples(TaskData(examples(21), 0, 0, 42))
    micro, blank = STEP // count // 2, len(data)  # two passes a step

    def shard(index, epoch):
        sampler = StepSampler(data, 42, micro * count, STEP)
        sampler.set_epoch(epoch)
        return list(BatchSamplerShard(BatchSampler(sampler, micro, drop_last=False), count, index))

    for epoch in (0, 1):
        seeded = StepSampler(data, 42)
        seeded.set_epoch(epoch)
        order, shards = list(seeded), [shard(index, epoch) for index in range(count)]
        assert sorted(order) == list(range(21))
        for step in range(3):
            here = chain(*(batch for batches in shards for batch in batches[2 * step : 2 * step + 2]))
            assert sorted(i for i in here if i != blank) == sorted(order[STEP * step : STEP * step + STEP])
        # In each pass the processes have examples of like length: none waits long for another.
        for batches in zip(*shards, strict=True):
            lengths = [[len(data[i].input_ids) for i in batch] for batch in batches]
            assert all(min(a) >= max(b) for a, b in pairwise(lengths))


def test_a_resumed_training_goes_on_with_the_same_steps(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 4:
            raise Stop

    def train(model, progress=None):
        resumable = Resumable(tmp_path / "resume", 0, tmp_path / "made")
        return trainer(examples(21), {"steps": 6}, progress=progress, resumable=resumable).train(model, 6)

    (tmp_path / "made").mkdir()
    cut, whole = random_model("llama"), random_model("llama")
    expected = trainer(examples(21), {"steps": 6}).train(whole, 6)
    with pytest.raises(Stop):
        train(cut, stop)
    resumed = random_model("llama")
    log = train(resumed)
    assert log.resumed_seconds > 0
    assert (log.tokens, log.loss) == (expected.tokens, expected.loss)
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))


def seen_in_forward(model):
    """Return a set of whether autocast is on and whether it keeps copies, as each linear layer sees it."""
    seen = set()

    def look(*_):
        seen.add((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(look)
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_keeps_no_copies_of_weights_under_checkpointing(checkpointing):
    model = random_model("llama")
    seen = seen_in_forward(model)
    changes = {"precision": "bfloat16", "gradient_checkpointing": checkpointing}
    trainer(examples(24), changes).train(model, 2)
    assert seen == {(True, not checkpointing)}
    assert torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_basis_selection_trains_without_copies_under_checkpointing(monkeypatch, checkpointing):
    model, seen = random_model("llama"), {}

    class Watched(TaskTrainer):
        def train(self, model, *args, **more):
            seen["while compressing"] = seen_in_forward(model)
            return super().train(model, *args, **more)

    changes = {"precision": "bfloat16", "gradient_checkpointing": checkpointing, "steps": 6}
    settings = SETTINGS.model_copy(update=changes)
    method = create_method("bs", {"prunings": 2, "new_vectors": "top", "additional_share": 0.5})
    watched = Watched(TaskData(examples(24), 0, 0, 42), settings)
    method.compress(model, method.fit(model, None), Budget(2.0), watched)
    assert seen["while compressing"] == {(True, not checkpointing)}


def test_copies_of_weights_change_no_number():
    models = [random_model("llama") for _ in range(2)]
    for model, checkpointing in zip(models, (False, True), strict=True):
        changes = {"precision": "bfloat16", "gradient_checkpointing": checkpointing}
        trainer(examples(24), changes).train(model, 3)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
