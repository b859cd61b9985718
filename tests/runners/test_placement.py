"""Where trainings keep their tensors: the first way that fits, the same numbers wherever the moments are."""

import pytest
import torch
import trained_together
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.shrinking import shrink_parameter
from lowrank_bench.models.architectures import random_model
from lowrank_bench.runners.data import TaskData
from lowrank_bench.runners.host_moments import HostMomentsAdamW
from lowrank_bench.runners.machine import Machine, assume_machine
from lowrank_bench.runners.placement import choose_placement, optimizer_name
from lowrank_bench.runners.recipes import TrainSettings
from lowrank_bench.runners.resuming import Resumable
from lowrank_bench.runners.training import TaskTrainer
from lowrank_bench.runners.training_memory import TrainingPeak

GIB = 2**30
ORDER = ("device", "fsdp2", "host-moments", "8-bit")


def foresee(parameters):
    """16 bytes a parameter, as AdamW in float32 takes them."""

    def peak(placement, processes):
        sizes = {"device": (16, 0), "fsdp2": (16 / processes, 0), "host-moments": (8, 8), "8-bit": (10, 0)}
        device, host = sizes[placement]
        return TrainingPeak(int(device * parameters), int(host * parameters))

    return peak


def gpus(count, device_gib, host_gib):
    return Machine(f"{count} cards", "cuda", count, int(device_gib * GIB), int(host_gib * GIB))


parameters = st.integers(10**8, 2 * 10**10)
machines = st.builds(gpus, st.integers(1, 8), st.floats(8, 200), st.floats(8, 500))


@given(parameters, machines)
def test_what_is_chosen_fits_and_nothing_before_it_does(size, machine):
    peak = foresee(size)
    fits = {
        way: peak(way, machine.count).device <= machine.device_bytes
        and peak(way, machine.count).host <= machine.host_bytes
        for way in ORDER
        if way != "fsdp2" or machine.count > 1
    }
    if not any(fits.values()):
        with pytest.raises(UserError, match="no way of training fits"):
            choose_placement(peak, machine)
        return
    choice = choose_placement(peak, machine)
    assert choice.placement == next(way for way, fit in fits.items() if fit)
    assert choice.processes == (machine.count if choice.placement == "fsdp2" else 1)
    assert bool(choice.why) == (choice.placement != "device")


@given(parameters, machines, st.floats(1, 3))
def test_more_memory_never_gives_a_later_way(size, machine, factor):
    more = gpus(machine.count, factor * machine.device_bytes / GIB, factor * machine.host_bytes / GIB)
    try:
        before = ORDER.index(choose_placement(foresee(size), machine).placement)
    except UserError:
        return
    assert ORDER.index(choose_placement(foresee(size), more).placement) <= before


def test_a_cpu_trains_on_the_device_whatever_it_takes():
    machine = Machine("cpu", "cpu", 1, GIB, GIB)
    assert choose_placement(foresee(10**12), machine) == choose_placement(foresee(1), machine)


@pytest.mark.parametrize(("card", "placement"), [("h100:1", "host-moments"), ("h100:8", "fsdp2"), ("h200:1", "device")])
def test_seven_billion_parameters_by_card(card, placement):
    assert choose_placement(foresee(6_738_415_616), assume_machine(card)).placement == placement


def test_other_optimizers_have_no_moments_to_move():
    with pytest.raises(UserError, match="no way"):
        choose_placement(foresee(10**10), gpus(1, 100, 200), optimizer="sgd")
    with pytest.raises(UserError, match="is for AdamW's moments"):
        choose_placement(foresee(1), gpus(1, 100, 200), "host-moments", optimizer="sgd")


@pytest.mark.parametrize("sharing", [None, 1])
def test_fsdp2_needs_two_processes(sharing):
    with pytest.raises(UserError, match="needs two"):
        choose_placement(foresee(1), gpus(1 if sharing is None else 8, 100, 200), "fsdp2", sharing=sharing)


def test_eight_bits_without_torchao_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'lowrank-bench\\[int8\\]'"):
        optimizer_name(TrainSettings(placement="8-bit"))


def test_only_what_changes_numbers_is_in_a_stages_key():
    plain = TrainSettings().model_dump(exclude={"placement"})
    assert TrainSettings().hashed() == plain
    assert TrainSettings(placement="host-moments").hashed() == plain
    assert TrainSettings(placement="fsdp2").hashed() == plain
    assert TrainSettings(placement="8-bit").hashed() == plain | {"placement": "8-bit"}


def two(fused):
    torch.manual_seed(3)
    one = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    other = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    other.load_state_dict(one.state_dict())
    options = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6}
    return one, torch.optim.AdamW(one.parameters(), foreach=False, fused=fused, **options), other, options


@pytest.mark.parametrize("fused", [False, True])
def test_the_update_is_torchs_own_bit_by_bit_also_after_shrinking_and_loading(fused):
    one, theirs, other, options = two(fused)
    ours = HostMomentsAdamW(other.parameters(), fused=fused, **options)

    def update(steps):
        for _ in range(steps):
            x = torch.randn(4, 7)
            for model, optimizer in ((one, theirs), (other, ours)):
                optimizer.zero_grad()
                hidden = x @ model[0].weight.T
                (hidden[:, : len(model[0].weight)].sum(-1) ** 2).mean().backward()
                optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    update(3)
    index = torch.tensor([4, 0, 2])
    for model, optimizer in ((one, theirs), (other, ours)):
        optimizer.zero_grad()
        assert shrink_parameter(model[0].weight, index, optimizer)
    update(2)
    again = HostMomentsAdamW(other.parameters(), fused=fused, **options)
    again.load_state_dict(ours.state_dict())
    ours = again
    update(2)


class Cut(BaseException):
    """Ends a training as a signal does."""


def train(model, placement, folder=None, cut=0):
    def progress(done, total):
        if done == cut:
            raise Cut

    settings = trained_together.SETTINGS.model_copy(update={"micro_batch_size": 4, "placement": placement})
    data = TaskData(trained_together.ITEMS, 0, 0, 42)
    resumable = Resumable(folder, 0.0) if folder else None
    return TaskTrainer(data, settings, resumable=resumable, progress=progress).train(model, trained_together.STEPS)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_whole_training_and_its_resumption_are_the_same_with_moments_on_the_host(tmp_path):
    plain, moved, resumed = (random_model("llama") for _ in range(3))
    train(plain, "device")
    train(moved, "host-moments")
    torch.testing.assert_close(weights(moved), weights(plain), rtol=1e-5, atol=1e-7)  # the other goes by foreach
    with pytest.raises(Cut):
        train(resumed, "host-moments", tmp_path / "r", cut=4)
    train(resumed, "host-moments", tmp_path / "r")
    assert torch.equal(weights(resumed), weights(moved))
