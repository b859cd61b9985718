"""The probe of a CPU: measured once, remembered, and estimates that scale with it."""

import math
from dataclasses import asdict, fields, replace

import pytest
import torch
from sweeps import small_sweep

from lowrank_bench.foundation.checksums import CACHE
from lowrank_bench.models.presets import ModelSource
from lowrank_bench.runners.estimates import probe
from lowrank_bench.runners.estimates.arithmetic import Arithmetic, Work
from lowrank_bench.runners.estimates.probe import Probe, eigen_operations, probe_cpu, svd_operations
from lowrank_bench.runners.estimates.speeds import cpu_speeds
from lowrank_bench.runners.plan import make_plan

PROBE = Probe(float32=1e11, bfloat16=4e11, float64=5e10, svd=1e10, eigen=2e10, memory=1e10, disk=1e9, call=3e-6)
WORK = Work(**{field.name: 1e9 for field in fields(Work)})


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """An empty cache, and how often the machine was measured."""
    calls = []
    monkeypatch.setenv(CACHE, str(tmp_path))
    monkeypatch.setattr(probe, "_measure", lambda: calls.append(1) or PROBE)
    probe._probe.cache_clear()
    yield calls
    probe._probe.cache_clear()


def test_a_probe_is_remembered_from_one_process_to_the_next(measured):
    assert probe_cpu() == PROBE
    probe._probe.cache_clear()  # as another process begins
    assert probe_cpu() == PROBE
    assert len(measured) == 1


@pytest.mark.parametrize("wrong", [None, [], {}, {"float32": 1.0}, asdict(PROBE) | {"svd": -1.0}, "text"])
def test_a_damaged_cache_is_measured_again(measured, wrong):
    assert probe._parse(wrong) is None
    probe_cpu()
    probe._probe.cache_clear()
    for file in (file for file in probe.cache_folder().rglob("*") if file.is_file()):
        file.write_bytes(b"\x00 damaged")
    assert probe_cpu() == PROBE
    assert len(measured) == 2


def test_another_machine_is_measured_itself(measured, monkeypatch):
    probe_cpu()
    probe._probe.cache_clear()
    monkeypatch.setattr(probe.platform, "node", lambda: "another")
    probe_cpu()
    assert len(measured) == 2


@pytest.mark.parametrize(("loads", "times"), [((9e9, 9e9), 1), ((9e9, 0), 2), ((0, 9e9), 1), ((0, 0), 1)])
def test_what_a_busy_machine_gave_counts_until_it_is_idle(measured, monkeypatch, loads, times):
    for load in loads:
        monkeypatch.setattr(probe.os, "getloadavg", lambda load=load: (load, load, load))
        probe._probe.cache_clear()
        assert probe_cpu() == PROBE
    assert len(measured) == times


def test_this_machine_can_be_probed():
    figures = asdict(probe._measure())
    assert all(math.isfinite(figure) and figure > 0 for figure in figures.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twice_the_speed_takes_half_the_time(dtype):
    twice = Probe(**{name: 2 * speed for name, speed in asdict(PROBE).items()} | {"call": PROBE.call / 2})
    slow, fast = (cpu_speeds(dtype, 4, 2, *measured).seconds(WORK) for measured in ((2.0, PROBE), (1.0, twice)))
    assert fast == pytest.approx(slow / 2)


@pytest.mark.parametrize("name", [field.name for field in fields(Work)])
def test_more_work_takes_longer(name):
    speeds = cpu_speeds(torch.float32, 4, 1, 2.0, PROBE)
    more = replace(WORK, **{name: 2e9})
    assert 0 < speeds.seconds(WORK) < speeds.seconds(more)


def test_native_bfloat16_speeds_up_evaluations_alone():
    plain, native = (cpu_speeds(dtype, 4, 1, 2.0, PROBE) for dtype in (torch.float32, torch.bfloat16))
    assert native.scoring == pytest.approx(4 * plain.scoring)
    assert native.training == plain.training


def test_more_threads_are_no_slower():
    one_thread, four_threads = (cpu_speeds(torch.float32, 4, threads, 2.0, PROBE).seconds(WORK) for threads in (1, 4))
    assert four_threads < one_thread


def test_operations_of_decompositions_do_not_depend_on_the_orientation():
    assert svd_operations(300, 100) == svd_operations(100, 300) > svd_operations(100, 100) > eigen_operations(100)


def test_every_stage_loads_the_tokenizer_and_a_pass_for_statistics_makes_no_logits(tmp_path, monkeypatch):
    methods = ["svd", "svd-llm", "fwsvd"]
    config = small_sweep(tmp_path, methods=methods, benchmarks=["toy-math", "tinystories"], engine="transformers")
    plan = make_plan(config, dry=True)
    works = {stage.title: Arithmetic(plan).work(key) for key, stage in plan.stages.items()}
    for title, work in works.items():
        assert work.tokenizers == (2 if title.startswith("evaluate toy-math") else 1), title
    vast = replace(Arithmetic(plan).sizes, head=1e15, vocabulary=10**9)
    monkeypatch.setattr(Arithmetic, "sizes", vast)
    more = {stage.title: Arithmetic(plan).work(key) for key, stage in plan.stages.items()}
    fits = {title: (works[title].reading, more[title].reading) for title in works if title.startswith("fit ")}
    assert fits
    for title, (few, many) in fits.items():
        assert (few == many) is ("fwsvd" not in title), title


def test_a_method_that_reads_its_calibration_again_is_no_search_through_millions_of_tokens(tmp_path):
    refined = ["aa:refine_passes=2", "aa:stream=dense,refine_passes=2"]
    config = small_sweep(tmp_path, methods=["svd-llm", "aa", "aa:stream=dense", *refined, "swsd"])
    plan = make_plan(config, dry=True)
    works = {stage.title: Arithmetic(plan).work(key) for key, stage in plan.stages.items()}
    reading = {title: work.reading for title, work in works.items() if title.startswith("compress")}
    (fit,) = {work.reading for title, work in works.items() if title.startswith("fit whitened")}

    def passes(method: str) -> float:
        return next(seconds for title, seconds in reading.items() if title.startswith(f"compress {method} ")) / fit

    assert passes("aa") == pytest.approx(6)
    assert passes("aa:stream=dense") == pytest.approx(3)
    assert passes("aa:refine_passes=2") == pytest.approx(12)
    assert passes("aa:stream=dense,refine_passes=2") == pytest.approx(10)
    assert passes("svd-llm") == 0
    assert passes("swsd") > 100


def test_loading_a_tokenizer_is_measured_once_and_counts_until_the_machine_is_idle(measured, monkeypatch):
    source = ModelSource("m", "m", "", "sha256 of a folder")
    seconds = iter((3.0, 2.0))
    monkeypatch.setattr(probe.PlanTokenizer, "load_seconds", lambda tokenizer: next(seconds))
    for load, expected in ((9e9, 3.0), (9e9, 3.0), (0, 2.0), (9e9, 2.0)):
        monkeypatch.setattr(probe.os, "getloadavg", lambda load=load: (load, load, load))
        assert probe.tokenizer_seconds(source) == expected
    assert cpu_speeds(torch.float32, 4, 1, 2.0, PROBE).seconds(Work(tokenizers=3)) == pytest.approx(
        6 + cpu_speeds(torch.float32, 4, 1, 2.0, PROBE).seconds(Work())
    )


@pytest.mark.parametrize("wrong", [[], "text", {}, {"seconds": "fast"}, {"seconds": -1.0}])
def test_what_is_no_time_of_loading_is_measured_again(measured, monkeypatch, wrong):
    source = ModelSource("m", "m", "", "sha256 of a folder")
    monkeypatch.setattr(probe.PlanTokenizer, "load_seconds", lambda tokenizer: 2.0)
    monkeypatch.setattr(probe, "remembered", lambda key, measure, valid: wrong if valid(wrong) else measure())
    assert probe.tokenizer_seconds(source) == 2.0
