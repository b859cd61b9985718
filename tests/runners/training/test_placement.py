"""Where trainings keep their tensors: the first way that fits, the same numbers wherever the moments are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.runners.estimates.machine import Machine, assume_machine
from lowrank_bench.runners.training.memory import TrainingPeak
from lowrank_bench.runners.training.placement import choose_placement, optimizer_name
from lowrank_bench.runners.training.settings import TrainSettings

GIB = 2**30
ORDER = ("device", "fsdp2", "host-moments", "8-bit")


def peak_of(parameters):
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
    peak = peak_of(size)
    fits = {
        placement: peak(placement, machine.count).device <= machine.device_bytes
        and peak(placement, machine.count).host <= machine.host_bytes
        for placement in ORDER
        if placement != "fsdp2" or machine.count > 1
    }
    if not any(fits.values()):
        with pytest.raises(UserError, match="no placement of training fits"):
            choose_placement(peak, machine)
        return
    choice = choose_placement(peak, machine)
    assert choice.placement == next(placement for placement, fit in fits.items() if fit)
    assert choice.processes == (machine.count if choice.placement == "fsdp2" else 1)
    assert bool(choice.why) == (choice.placement != "device")


@given(parameters, machines, st.floats(1, 3))
def test_more_memory_never_gives_a_later_way(size, machine, factor):
    more = gpus(machine.count, factor * machine.device_bytes / GIB, factor * machine.host_bytes / GIB)
    try:
        before = ORDER.index(choose_placement(peak_of(size), machine).placement)
    except UserError:
        return
    assert ORDER.index(choose_placement(peak_of(size), more).placement) <= before


def test_a_cpu_trains_on_the_device_whatever_it_takes():
    machine = Machine("cpu", "cpu", 1, GIB, GIB)
    assert choose_placement(peak_of(10**12), machine) == choose_placement(peak_of(1), machine)


@pytest.mark.parametrize(("card", "placement"), [("h100:1", "host-moments"), ("h100:8", "fsdp2"), ("h200:1", "device")])
def test_seven_billion_parameters_by_card(card, placement):
    assert choose_placement(peak_of(6_738_415_616), assume_machine(card)).placement == placement


def test_other_optimizers_have_no_moments_to_move():
    with pytest.raises(UserError, match="no placement"):
        choose_placement(peak_of(10**10), gpus(1, 100, 200), optimizer="sgd")
    with pytest.raises(UserError, match="is for AdamW's moments"):
        choose_placement(peak_of(1), gpus(1, 100, 200), "host-moments", optimizer="sgd")


@pytest.mark.parametrize("sharing", [None, 1])
def test_fsdp2_needs_two_processes(sharing):
    with pytest.raises(UserError, match="needs two"):
        choose_placement(peak_of(1), gpus(1 if sharing is None else 8, 100, 200), "fsdp2", sharing=sharing)


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
