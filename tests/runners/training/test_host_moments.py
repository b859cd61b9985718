import contextlib

import pytest
import torch
import trained_together
from torch import nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.shrinking import shrink_parameter
from lowrank_bench.models.architectures import random_model
from lowrank_bench.runners.training import host_moments
from lowrank_bench.runners.training.data import TaskData
from lowrank_bench.runners.training.host_moments import HostMomentsAdamW
from lowrank_bench.runners.training.placement import optimizer_name
from lowrank_bench.runners.training.resuming import Resumable
from lowrank_bench.runners.training.trainer import TaskTrainer

SHAPES = ((7, 5), (33,), (4, 4), (64, 9), (1,))
OPTIONS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}


def parameters(seed=0):
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def steps(optimizer, tensors, count, first=0):
    for number in range(first, first + count):
        torch.manual_seed(100 + number)
        for index, parameter in enumerate(tensors):
            parameter.grad = None if (number + index) % 4 == 3 else torch.randn_like(parameter)
        optimizer.step()


def same(left, right):
    return all(map(torch.equal, left, right))


class Stream:
    """A stream that does at once what it is given, and notes the order."""

    log: list

    def __init__(self, device=None):
        self.name = f"stream {sum(entry[0] == 'made' for entry in self.log)}"
        self.log.append(("made", self.name))

    def wait_stream(self, other):
        self.log.append(("waits for stream", self.name))

    def wait_event(self, event):
        assert event.stream is not None, "an event that nobody has recorded lets everybody pass"
        self.log.append(("waits", self.name, event.stream.name))

    def synchronize(self):
        self.log.append(("synchronized", self.name))


class Event:
    stream = None

    def record(self, stream):
        self.stream = stream


@pytest.fixture
def far_device(monkeypatch):
    """Make the CPU pass for a GPU whose memory is not the host's; return the order of the streams' work."""
    log = []
    monkeypatch.setattr(Stream, "log", log, raising=False)
    computing = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)

    @contextlib.contextmanager
    def stream(chosen):
        log.append(("on", chosen.name))
        yield

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(host_moments, "_is_away", lambda parameter: True)
    return log


@pytest.mark.parametrize("fused", [False, True])
def test_the_update_is_torchs_bit_by_bit(fused):
    ours, theirs = parameters(), parameters()
    steps(HostMomentsAdamW(ours, **OPTIONS, fused=fused), ours, 9)
    steps(torch.optim.AdamW(theirs, **OPTIONS, foreach=False, fused=fused), theirs, 9)
    assert same(ours, theirs)
    other = parameters()
    steps(torch.optim.AdamW(other, **OPTIONS, foreach=True), other, 9)
    torch.testing.assert_close(ours, other)


def test_through_buffers_the_update_is_the_same_and_each_copy_waits_for_its_turn(far_device):
    ours, theirs = parameters(), parameters()
    for tensors in (ours, theirs):
        for parameter in tensors:
            parameter.grad = torch.ones_like(parameter)
    optimizer = HostMomentsAdamW(ours, **OPTIONS)
    optimizer.step()
    waits = [entry for entry in far_device if entry[0] in ("waits", "synchronized", "waits for stream")]
    steps(optimizer, ours, 4)
    reference = torch.optim.AdamW(theirs, **OPTIONS, foreach=False)
    reference.step()
    steps(reference, theirs, 4)
    assert same(ours, theirs)
    computing, loading, storing = "stream 0", "stream 1", "stream 2"
    update = [("waits", computing, loading), ("waits", storing, computing)]
    expected = [("waits for stream", loading), *update]  # the second is on its way before the first is updated
    for _ in range(3):  # a buffer is filled again when its content is stored
        expected += [("waits", loading, storing), *update]
    assert waits == [*expected, *update, ("synchronized", storing)]


def test_states_are_exchanged_with_torchs_own_and_a_resumed_training_goes_on_bit_by_bit():
    whole, first = parameters(), parameters()
    steps(HostMomentsAdamW(whole, **OPTIONS), whole, 6)
    before = HostMomentsAdamW(first, **OPTIONS)
    steps(before, first, 3)
    for kind in (HostMomentsAdamW, torch.optim.AdamW):
        later = [nn.Parameter(parameter.detach().clone()) for parameter in first]
        after = kind(later, **OPTIONS)
        after.load_state_dict(before.state_dict())
        steps(after, later, 3, first=3)
        assert same(later, whole)


@pytest.mark.parametrize("buffers", [False, True])
def test_a_parameter_shrinks_in_the_middle_of_training(buffers, request):
    if buffers:
        request.getfixturevalue("far_device")
    ours, theirs = parameters(), parameters()
    pairs = ((HostMomentsAdamW(ours, **OPTIONS), ours), (torch.optim.AdamW(theirs, **OPTIONS, foreach=False), theirs))
    for optimizer, tensors in pairs:
        steps(optimizer, tensors, 3)
        assert shrink_parameter(tensors[3], torch.tensor([5, 0, 63, 8]), optimizer)
        steps(optimizer, tensors, 3, first=3)
    assert ours[3].shape == (4, 9)
    assert same(ours, theirs)


class Cut(BaseException):
    """Ends a training as a signal does."""


def train(model, placement, folder=None, cut=None, **more):
    settings = trained_together.SETTINGS.model_copy(update={"placement": placement, **more})

    def progress(done, total):
        if done == cut:
            raise Cut

    resumable = Resumable(folder, 0.0) if folder else None
    trainer = TaskTrainer(TaskData(trained_together.ITEMS, 0, 0, 42), settings, progress=progress, resumable=resumable)
    trainer.train(model, trained_together.STEPS)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_trainer_trains_the_same_weights_wherever_the_moments_lie():
    expected = train(random_model("llama"), "device")
    assert torch.equal(train(random_model("llama"), "host-moments"), expected)
    fused = train(random_model("llama"), "device", optimizer="adamw_torch_fused")
    assert torch.equal(train(random_model("llama"), "host-moments", optimizer="adamw_torch_fused"), fused)


def test_a_training_that_was_cut_off_goes_on_bit_by_bit(tmp_path):
    models = [random_model("llama", width=64) for _ in range(3)]
    whole = train(models[0], "host-moments")
    with pytest.raises(Cut):
        train(models[1], "host-moments", tmp_path, cut=5)
    assert (tmp_path / "run-0" / "checkpoint-4" / "optimizer.pt").exists()
    assert torch.equal(train(models[2], "host-moments", tmp_path), whole)


def test_basis_selection_trains_with_moments_on_the_host():
    settings = trained_together.SETTINGS.model_copy(update={"placement": "host-moments"})
    model = random_model("llama")
    bs = create_method("bs", {"prunings": 3, "new_vectors": "top", "criterion": "taylor"})
    data = TaskData(trained_together.ITEMS, 0, 0, 42)
    trainer = TaskTrainer(data, settings)
    report = bs.compress(model, bs.fit(model, data), Budget(2.0, bs.guard), trainer)
    assert report.ratio >= 2
    assert trainer.log.steps > 0


def test_without_torchao_an_error_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings = trained_together.SETTINGS.model_copy(update={"placement": "8-bit"})
    with pytest.raises(UserError, match=r"pip install 'lowrank-bench\[int8\]'"):
        optimizer_name(settings)
